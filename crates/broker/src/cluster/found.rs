//! How a cluster begins, and how a broker finds the one it belongs to.
//!
//! The seeds found the cluster once, when every one of them says that it has none and they agree on the list of seeds.
//! Each then writes the same first entry of the metadata log by itself: which members it names follows from who answered.
//! So nobody has to be first, and a broker never founds a cluster by accident: a seed that does not answer, or that has a
//! cluster already, stops it. Whoever comes later asks a seed to be registered and follows the metadata as a learner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_consensus::{ConfigEntry, Member};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use uuid::Uuid;

use super::node::{Found, Node, cluster_id, metadata_node};
use crate::Error;
use crate::peer::{PeerInfo, Peers};

/// Between two rounds of asking the seeds.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So many rounds without progress are said in the log, once.
const ROUNDS_UNTIL_SAID: usize = 30;
/// A seed that refuses for good is believed after so long: whoever returns with another disk may be there before the
/// others have noticed that it went (`PROMPT_KEEPALIVE` and its timeout).
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// How long a start waits for the seeds to say which cluster they are of.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// Voters of the metadata group.
const VOTERS: usize = 3;
/// Voters where there are as many seeds.
const VOTERS_MANY: usize = 5;

/// What was found.
#[derive(Debug)]
pub(crate) enum Begin {
    /// This broker is one of the founders, and writes this entry.
    Found(ConfigEntry),
    /// It was let in.
    Joined,
}

/// Asks the seeds until there is a cluster. Does not end as long as there is none.
///
/// # Errors
/// [`Error::Start`] when the seeds can never agree: two brokers with one id, lists of seeds that differ; and when one of
/// them goes on refusing this broker for a reason that does not pass.
pub(crate) async fn find(
    node: &Arc<Node>,
    peers: &Peers,
    seeds: &[String],
    directory: Uuid,
) -> Result<Begin, Error> {
    let me = node.identity();
    let mut said = "";
    let mut refused_since = None;
    for round in 0usize.. {
        let answers = ask(peers, seeds, &me).await;
        let known: Vec<&pb::StatusResponse> = answers.iter().flatten().collect();
        if let Some(founded) = known.iter().find(|answer| !answer.founded.is_empty()) {
            match enter(node, peers, &answers, seeds, founded, directory).await {
                Ok(Some(begin)) => return Ok(begin),
                Ok(None) => refused_since = None,
                Err(error) => {
                    let since: &mut Instant = refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= REFUSED_FOR {
                        return Err(Error::Start(error.to_string()));
                    }
                }
            }
        } else if known.len() == seeds.len() {
            match agree(&known, &me)? {
                Some(entry) => {
                    for answer in &known {
                        note(node, answer);
                    }
                    node.set_found(Found {
                        cluster_id: cluster_id(&entry).to_string(),
                        founding: entry.encode(),
                    });
                    connect(peers, &known);
                    return Ok(Begin::Found(entry));
                }
                None => said = "the seeds have no cluster yet, and this broker is not one of them",
            }
        } else {
            said = "not every seed answers; a cluster is founded only when all do";
        }
        if round % ROUNDS_UNTIL_SAID == ROUNDS_UNTIL_SAID - 1 {
            let answering = known.len();
            tracing::warn!(?seeds, answering, "waiting for a cluster: {said}");
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Err(Error::Start("no cluster was found".to_owned()))
}

/// Asks every seed at once; in their order.
pub(crate) async fn ask(
    peers: &Peers,
    seeds: &[String],
    me: &pb::PeerIdentity,
) -> Vec<Option<pb::StatusResponse>> {
    let asked = seeds.iter().map(|seed| {
        let request = pb::StatusRequest {
            asker: Some(me.clone()),
        };
        async move { peers.status(seed, request).await.ok() }
    });
    futures::future::join_all(asked).await
}

fn directory_of(identity: &pb::PeerIdentity) -> Option<Uuid> {
    Uuid::from_slice(&identity.directory_id).ok()
}

/// Lets a broker in that the metadata does not know yet.
fn note(node: &Node, answer: &pb::StatusResponse) {
    if let Some(identity) = &answer.answerer {
        node.trust(identity);
    }
}

fn connect(peers: &Peers, answers: &[&pb::StatusResponse]) {
    peers.set_known(addresses(answers));
}

/// Where the brokers that answered listen.
pub(crate) fn addresses(answers: &[&pb::StatusResponse]) -> BTreeMap<i32, PeerInfo> {
    let identities = answers.iter().filter_map(|answer| answer.answerer.as_ref());
    identities
        .map(|identity| {
            let info = PeerInfo {
                address: identity.peer_address.clone(),
                rack: identity.rack.clone(),
            };
            (identity.broker_id, info)
        })
        .collect()
}

/// A refusal that waiting does not change.
pub(crate) fn is_hopeless(error: &ApiError) -> bool {
    matches!(
        error.reason,
        Some(Reason::BrokerIdInUse | Reason::UnsupportedVersion | Reason::InvalidArgument)
    )
}

/// Whether the seeds are of the cluster that this directory belongs to, as far as they answer soon.
///
/// # Errors
/// [`Error::Start`] when all that say so are of another one.
pub(crate) async fn check_seeds(node: &Node, peers: &Peers, seeds: &[String]) -> Result<(), Error> {
    let me = node.identity();
    let asked = seeds.iter().map(|seed| {
        let request = pb::StatusRequest {
            asker: Some(me.clone()),
        };
        async move {
            let answer = tokio::time::timeout(CHECK_TIMEOUT, peers.status(seed, request)).await;
            Some((seed, answer.ok()?.ok()?))
        }
    });
    let answers = futures::future::join_all(asked).await;
    let others = answers.iter().flatten().filter(|(_, answer)| {
        let answerer = answer.answerer.as_ref();
        !answer.founded.is_empty()
            && answerer.is_some_and(|other| other.directory_id != me.directory_id)
    });
    let (ours, theirs): (Vec<_>, Vec<_>) =
        others.partition(|(_, answer)| answer.founded == me.cluster_id);
    match theirs.first() {
        Some((seed, answer)) if ours.is_empty() => {
            let why = format!(
                "the data directory belongs to cluster {}, the seed {seed} to cluster {}",
                me.cluster_id, answer.founded
            );
            let error = ApiError::new(Reason::WrongCluster, why);
            Err(Error::Start(error.to_string()))
        }
        _ => Ok(()),
    }
}

/// There is a cluster: founders that missed the founding found it now, others ask to be let in.
///
/// # Errors
/// A refusal that waiting does not change, when nobody let this broker in.
async fn enter(
    node: &Arc<Node>,
    peers: &Peers,
    answers: &[Option<pb::StatusResponse>],
    seeds: &[String],
    founded: &pb::StatusResponse,
    directory: Uuid,
) -> Result<Option<Begin>, ApiError> {
    let founding = ConfigEntry::decode(&founded.membership).ok();
    let me = metadata_node(directory);
    let found = Found {
        cluster_id: founded.founded.clone(),
        founding: founded.membership.clone(),
    };
    let known: Vec<&pb::StatusResponse> = answers.iter().flatten().collect();
    if let Some(entry) = founding.filter(|entry| entry.result.is_voter(me)) {
        known.iter().for_each(|answer| note(node, answer));
        node.set_found(found);
        connect(peers, &known);
        return Ok(Some(Begin::Found(entry)));
    }
    let mut hopeless = None;
    let in_it = answers.iter().zip(seeds);
    let in_it = in_it.filter(|(answer, _)| {
        let founded = answer.as_ref().map(|answer| answer.founded.as_str());
        founded == Some(found.cluster_id.as_str())
    });
    for (_, seed) in in_it {
        let request = pb::JoinRequest {
            broker: Some(node.identity()),
        };
        match peers.join(seed, request).await {
            Ok(joined) if joined.cluster_id == found.cluster_id => {
                // Those who will send the metadata are let in before it says who they are.
                known.iter().for_each(|answer| note(node, answer));
                node.set_found(found);
                let mut there = addresses(&known);
                for peer in joined.peers {
                    if !there.contains_key(&peer.broker_id) {
                        node.trust(&pb::PeerIdentity {
                            broker_id: peer.broker_id,
                            directory_id: peer.directory_id,
                            peer_address: peer.address.clone(),
                            ..pb::PeerIdentity::default()
                        });
                    }
                    there.entry(peer.broker_id).or_insert(PeerInfo {
                        address: peer.address,
                        rack: String::new(),
                    });
                }
                peers.set_known(there);
                return Ok(Some(Begin::Joined));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(seed, %error, "not let in yet");
                if is_hopeless(&error) {
                    hopeless = Some(error);
                }
            }
        }
    }
    hopeless.map_or(Ok(None), Err)
}

/// Every seed answered and none has a cluster: who founds it. `None` when this broker is not among the seeds.
fn agree(
    answers: &[&pb::StatusResponse],
    me: &pb::PeerIdentity,
) -> Result<Option<ConfigEntry>, Error> {
    let lists: BTreeSet<BTreeSet<&String>> = answers
        .iter()
        .filter_map(|answer| answer.answerer.as_ref())
        .map(|identity| identity.seeds.iter().collect())
        .collect();
    let mine: BTreeSet<&String> = me.seeds.iter().collect();
    if lists.iter().any(|list| *list != mine) {
        return Err(Error::Start(format!(
            "the seeds disagree on who they are: {lists:?}; give every broker the same --seeds"
        )));
    }
    let mut founders: BTreeMap<i32, (&str, Uuid)> = BTreeMap::new();
    for identity in answers.iter().filter_map(|answer| answer.answerer.as_ref()) {
        let Some(directory) = directory_of(identity) else {
            continue;
        };
        let place = (identity.rack.as_str(), directory);
        let before = founders.insert(identity.broker_id, place);
        if before.is_some_and(|(_, other)| other != directory) {
            return Err(Error::Start(format!(
                "two seeds have the broker id {}; give each broker an id of its own",
                identity.broker_id
            )));
        }
    }
    let directory = directory_of(me);
    let is_seed = founders
        .get(&me.broker_id)
        .is_some_and(|(_, d)| Some(*d) == directory);
    if !is_seed {
        return Ok(None);
    }
    let members = choose(&founders);
    Ok(Some(ConfigEntry::founding(members)))
}

/// The metadata's voters among the founders: racks in turn, so that none has a majority where there are racks enough.
fn choose(founders: &BTreeMap<i32, (&str, Uuid)>) -> Vec<Member> {
    let count = match founders.len() {
        many if many >= VOTERS_MANY => VOTERS_MANY,
        few => few.min(VOTERS),
    };
    let mut in_rack: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, i32)> = Vec::new();
    for (broker, (rack, _)) in founders {
        let taken = in_rack.entry(rack).or_default();
        ranked.push((*taken, *broker));
        *taken += 1;
    }
    ranked.sort_unstable();
    let mut chosen: Vec<i32> = ranked.into_iter().map(|(_, b)| b).take(count).collect();
    chosen.sort_unstable();
    chosen
        .into_iter()
        .filter_map(|broker| {
            let (_, directory) = founders.get(&broker)?;
            Some(Member {
                node: metadata_node(*directory),
                broker,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: i32, rack: &str, seeds: &[&str]) -> pb::StatusResponse {
        pb::StatusResponse {
            answerer: Some(pb::PeerIdentity {
                broker_id: id,
                rack: rack.to_owned(),
                directory_id: Uuid::from_u128(id as u128).as_bytes().to_vec().into(),
                seeds: seeds.iter().map(|seed| (*seed).to_owned()).collect(),
                ..pb::PeerIdentity::default()
            }),
            ..pb::StatusResponse::default()
        }
    }

    fn agreed(answers: &[pb::StatusResponse], me: usize) -> Result<Option<ConfigEntry>, Error> {
        let me = answers[me].answerer.clone().unwrap();
        agree(&answers.iter().collect::<Vec<_>>(), &me)
    }

    #[test]
    fn founders_write_the_same_entry_whoever_they_are() {
        let seeds = ["a:1", "b:1", "c:1"];
        let answers = [3, 1, 2].map(|id| answer(id, &format!("r{id}"), &seeds));
        let entries: Vec<_> = (0..3).map(|me| agreed(&answers, me).unwrap()).collect();
        assert!(entries[0].is_some());
        assert_eq!(entries[0], entries[1]);
        assert_eq!(entries[0], entries[2]);
        let entry = entries[0].as_ref().unwrap();
        assert_eq!(entry.result.voters.len(), 3);
        assert_eq!(cluster_id(entry), cluster_id(entries[1].as_ref().unwrap()));
    }

    #[test]
    fn seeds_that_disagree_found_nothing() {
        let one = answer(1, "a", &["a:1", "b:1"]);
        let two = answer(2, "b", &["a:1"]);
        assert!(agreed(&[one, two], 0).is_err());
        let mut twin = answer(1, "b", &["a:1"]);
        if let Some(identity) = &mut twin.answerer {
            identity.directory_id = Uuid::from_u128(77).as_bytes().to_vec().into();
        }
        assert!(agreed(&[answer(1, "a", &["a:1"]), twin], 0).is_err());
    }

    #[test]
    fn no_rack_has_a_majority_of_the_voters_where_there_are_racks_enough() {
        let racks = ["a", "a", "a", "b", "c"];
        let seeds = ["x:1"];
        let answers: Vec<_> = (0..5)
            .map(|n| answer(n + 1, racks[n as usize], &seeds))
            .collect();
        let entry = agreed(&answers[..4], 0).unwrap().unwrap();
        let in_a = entry.result.voters.iter().filter(|m| m.broker <= 3);
        assert_eq!(in_a.count(), 2, "two racks: one has two of three");
        let three = [&answers[0], &answers[1], &answers[3], &answers[4]].map(Clone::clone);
        let entry = agreed(&three, 0).unwrap().unwrap();
        let mut brokers: Vec<_> = entry.result.voters.iter().map(|m| m.broker).collect();
        brokers.sort_unstable();
        assert_eq!(brokers, [1, 4, 5]);
    }
}
