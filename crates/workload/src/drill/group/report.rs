//! What a drill of groups measured, and what it says in the end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::GroupDrillKind;
use crate::drill::gaps::GapSummary;

/// What it came to; the fields of `drill group-join -o json` and its like. What a drill does not measure is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupDrillReport {
    /// Repetitions that were gone through to their end.
    pub times: u64,
    /// Consumers of the group.
    pub consumers: usize,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Session timeout of the consumers, in milliseconds.
    pub session_timeout_ms: u64,
    /// Of a join: from the start of the last consumer until every partition was read by the member that it came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_join_to_all_consumed_ms: Option<GapSummary>,
    /// Of a join: partitions that did not move and were more than half a second behind, over all repetitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_partitions: Option<u64>,
    /// Of a join: partitions that did not move, over all repetitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmoved_partitions: Option<u64>,
    /// Of a join: the longest time from a record's sending to its reading in a partition that did not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_unmoved_ms: Option<GapSummary>,
    /// Until all that a consumer had was read by others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takeover_ms: Option<Takeovers>,
    /// Commits that were answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits: Option<u64>,
    /// Commits that were answered, and behind which the group stood afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_commits: Option<u64>,
    /// Times that the group stood behind where it had stood before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_back: Option<u64>,
    /// Partitions that changed their member although no member went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_partitions: Option<u64>,
    /// The longest time that a consumer was without an answer to a commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_commit_gap_ms: Option<GapSummary>,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records read by members, each counted once.
    pub read: u64,
    /// Acknowledged records that no member read, and lost commits.
    pub lost: u64,
    /// Times that a record was read again, as at-least-once allows.
    pub duplicated: u64,
    /// What the producer gave up, was read altered or elsewhere; and 1 for a drill that could not be gone through to its end.
    pub errors: u64,
    /// How long it all took.
    pub seconds: f64,
    /// Why it was not gone through to its end; told beside the figures.
    #[serde(skip)]
    pub failure: Option<String>,
}

/// Until others read what a consumer had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Takeovers {
    /// After it was killed: its session has to end.
    pub kill: GapSummary,
    /// After it began to leave.
    pub leave: GapSummary,
}

impl GroupDrillReport {
    /// Nothing is lost or wrong.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.errors == 0 && self.moved_back.unwrap_or(0) == 0
    }

    pub(super) fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        self.failure.get_or_insert_with(|| error.to_string());
    }
}

/// What the repetitions measured.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) rounds: u64,
    pub(super) joins: Vec<Duration>,
    pub(super) paused: u64,
    pub(super) unmoved: u64,
    pub(super) worst_unmoved: Vec<Duration>,
    pub(super) kills: Vec<Duration>,
    pub(super) leaves: Vec<Duration>,
    pub(super) commits: u64,
    pub(super) lost_commits: u64,
    pub(super) moved_back: u64,
    pub(super) moved: u64,
    pub(super) commit_gaps: Vec<Duration>,
}

impl Figures {
    pub(super) fn fill(self, kind: GroupDrillKind, report: &mut GroupDrillReport) {
        report.times = self.rounds;
        match kind {
            GroupDrillKind::GroupJoin => {
                report.last_join_to_all_consumed_ms = Some(GapSummary::of(self.joins));
                report.paused_partitions = Some(self.paused);
                report.unmoved_partitions = Some(self.unmoved);
                report.worst_unmoved_ms = Some(GapSummary::of(self.worst_unmoved));
            }
            GroupDrillKind::GroupKill => {
                report.takeover_ms = Some(Takeovers {
                    kill: GapSummary::of(self.kills),
                    leave: GapSummary::of(self.leaves),
                });
            }
            GroupDrillKind::CoordinatorKill => {
                report.commits = Some(self.commits);
                report.lost_commits = Some(self.lost_commits);
                report.moved_back = Some(self.moved_back);
                report.moved_partitions = Some(self.moved);
                report.worst_commit_gap_ms = Some(GapSummary::of(self.commit_gaps));
                report.lost += self.lost_commits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_contract() {
        let fields = |kind| {
            let mut report = GroupDrillReport::default();
            Figures::default().fill(kind, &mut report);
            serde_json::to_value(&report).unwrap()
        };
        let join = fields(GroupDrillKind::GroupJoin);
        assert!(join["last_join_to_all_consumed_ms"]["p99"].is_f64());
        assert!(join["paused_partitions"].is_u64() && join["consumers"].is_u64());
        assert!(join.get("commits").is_none());
        let kill = fields(GroupDrillKind::GroupKill);
        assert!(kill["takeover_ms"]["kill"]["max"].is_f64());
        assert!(kill["takeover_ms"]["leave"]["max"].is_f64());
        let coordinator = fields(GroupDrillKind::CoordinatorKill);
        for field in ["times", "commits", "lost", "moved_back"] {
            assert!(coordinator[field].is_u64(), "{field}");
        }
        assert!(coordinator["worst_commit_gap_ms"]["p50"].is_f64());
    }
}
