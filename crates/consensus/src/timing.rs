//! When a follower stands for election: successors have ranks, so that they do not stand against each other.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::membership::Membership;
use crate::message::NodeId;

/// Timeouts in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A leader not heard of for so long may be replaced; a leader that hears of no majority for so long steps down.
    pub election_ticks: usize,
    /// Between two beats.
    pub beat_ticks: usize,
    /// Beyond the election timeout until the first successor stands.
    pub first_ticks: usize,
    /// Between one successor and the next.
    pub rank_ticks: usize,
    /// A hand-over that takes longer is given up: nothing can be proposed meanwhile, and the successor may be gone. It may
    /// still be elected.
    pub transfer_ticks: usize,
    /// A shard that was not heard for so long stands for none of its groups.
    pub silent_ticks: usize,
    /// A leader that fell silent asks again whether it may, whenever so much has passed: a multiple of `beat_ticks`.
    pub renew_ticks: usize,
    /// A follower that was not asked for so long takes its leader for gone, whatever the leader's shard says.
    pub forget_ticks: usize,
}

impl Default for Timing {
    /// For ticks of 25 ms: 300 ms, 100 ms, 50 ms, 100 ms, 100 ms, 200 ms, 2 s, 6 s.
    fn default() -> Timing {
        Timing {
            election_ticks: 12,
            beat_ticks: 4,
            first_ticks: 2,
            rank_ticks: 4,
            transfer_ticks: 4,
            silent_ticks: 8,
            renew_ticks: 80,
            forget_ticks: 240,
        }
    }
}

impl Timing {
    /// Timeouts for these two, in ticks; everything else follows from them. At least 2 and 1.
    pub fn of(election_ticks: usize, beat_ticks: usize) -> Timing {
        let election_ticks = election_ticks.max(2);
        let beat_ticks = beat_ticks.clamp(1, election_ticks - 1);
        Timing {
            election_ticks,
            beat_ticks,
            // One beat may be missed, if there is time for that before the timeout.
            silent_ticks: (2 * beat_ticks).min(election_ticks - 1),
            renew_ticks: 20 * beat_ticks,
            forget_ticks: 60 * beat_ticks,
            ..Timing::default()
        }
    }

    /// The timeout of `node` while it follows `leader` (0: nobody).
    pub(crate) fn timeout(
        &self,
        membership: &Membership,
        leader: NodeId,
        node: NodeId,
        rng: &mut SmallRng,
    ) -> usize {
        match rank(membership, leader, node) {
            Some(rank) => self.election_ticks + self.first_ticks + rank * self.rank_ticks,
            // Nobody to succeed: by chance, over one more timeout.
            None => self.election_ticks + rng.random_range(0..self.election_ticks),
        }
    }
}

/// The place of `node` among the voters behind `leader`, from 0.
fn rank(membership: &Membership, leader: NodeId, node: NodeId) -> Option<usize> {
    let at = |wanted: NodeId| membership.voters.iter().position(|m| m.node == wanted);
    let (leader, node, voters) = (at(leader)?, at(node)?, membership.voters.len());
    ((node + voters - leader) % voters).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Member;

    #[test]
    fn successors_stand_in_the_order_behind_the_leader() {
        let member = |node| Member { node, broker: 0 };
        let membership = Membership::of_voters(vec![member(7), member(3), member(5)]);
        let ranks = |leader| [7, 3, 5].map(|node| rank(&membership, leader, node));
        assert_eq!(ranks(7), [None, Some(0), Some(1)]);
        assert_eq!(ranks(3), [Some(1), None, Some(0)]);
        assert_eq!(ranks(5), [Some(0), Some(1), None]);
        assert_eq!(ranks(9), [None, None, None]);
    }
}
