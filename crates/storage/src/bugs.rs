//! Deliberate mistakes behind a test-only feature: each must be found by the crash tests, or they prove nothing.

use crate::options::StoreOptions;

/// A mistake that an engineer could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A cycle counts as durable without its sync.
    SkipJournalSync,
    /// A direct sync counts without having happened.
    SkipDirectSync,
    /// A directly synced frame is acknowledged when its sync is done, not when a synced cycle names it.
    AckEarly,
    /// A journal cycle is accepted by its place and checksum alone: a stale lap is replayed.
    StaleLap,
    /// A checkpoint leaves out replicas without new entries.
    ForgetIdle,
    /// A conflict truncation goes on writing in the same file.
    RewriteInPlace,
    /// Recovery counts intact bytes that no sync is known to cover, and does not sync them.
    CountUnsynced,
    /// A lap is freed when the checkpoint begins, not when its table is durable.
    FreeEarly,
    /// A new file's header is not in the journal.
    NoHeaderRecord,
    /// A checkpoint does not sync closed segments.
    SkipClosed,
    /// Files are deleted before a durable table does without them.
    DeleteEarly,
    /// Recovery believes the page cache.
    TrustCache,
    /// Producer state is not part of the checkpoint.
    ForgetProducers,
    /// The commit index is not bounded by what was recovered.
    CommitBeyondEnd,
    /// A sparse index read from a footer is believed without looking at the frame.
    TrustIndex,
    /// Recovery knows no membership but that of the entries it walks.
    ForgetMembership,
    /// A truncation leaves the terms of the entries it cuts.
    KeepTerms,
    /// A hard state counts as durable when a cycle takes it, not when that is synced.
    VoteEarly,
    /// What a follower appends says nothing of its producer.
    ForgetFollowersProducers,
    /// The sync of an entry that was cut counts for the one in its place.
    CountCutSyncs,
    /// Files of entries without records go although nothing was trimmed.
    DropUntrimmed,
    /// A snapshot is made live without a sync of its files.
    InstallUnsynced,
    /// A staged file is told of in the journal like any new one.
    StagedLive,
    /// After an install the files that it replaced still count in recovery.
    KeepReplaced,
}

impl Bug {
    /// All that show with one store; [`Bug::DropUntrimmed`] takes one replica that asks another.
    pub const ALL: &[Bug] = &[
        Bug::SkipJournalSync,
        Bug::SkipDirectSync,
        Bug::AckEarly,
        Bug::StaleLap,
        Bug::ForgetIdle,
        Bug::RewriteInPlace,
        Bug::CountUnsynced,
        Bug::FreeEarly,
        Bug::NoHeaderRecord,
        Bug::SkipClosed,
        Bug::DeleteEarly,
        Bug::TrustCache,
        Bug::ForgetProducers,
        Bug::CommitBeyondEnd,
        Bug::TrustIndex,
        Bug::ForgetMembership,
        Bug::KeepTerms,
        Bug::VoteEarly,
        Bug::ForgetFollowersProducers,
        Bug::CountCutSyncs,
        Bug::InstallUnsynced,
        Bug::StagedLive,
        Bug::KeepReplaced,
    ];
}

/// Whether the options ask for this mistake.
pub(crate) fn planted(options: &StoreOptions, bug: Bug) -> bool {
    #[cfg(feature = "planted-bugs")]
    return options.bug == Some(bug);
    #[cfg(not(feature = "planted-bugs"))]
    {
        let _ = (options, bug);
        false
    }
}
