//! Deliberate mistakes behind a test-only feature: each must be found by the simulator, or it proves nothing.

/// A mistake that an engineer could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Entries are accepted before they are synced.
    AcceptEarly,
    /// A vote is told before it is synced.
    VoteEarly,
    /// A leader counts its own entries before they are synced.
    CountUnsynced,
    /// Term and vote are not found again after a restart.
    ForgetHardState,
    /// A replica votes for everybody who asks.
    VoteTwice,
    /// A vote is given whatever the candidate's log lacks.
    VoteForShorter,
    /// An append that is older than the log's end cuts the end off.
    CutByOldAppend,
    /// A follower accepts its whole log, not what the leader sent.
    AcceptAll,
    /// The log is told of a commit up to its end.
    CommitAll,
    /// A joint configuration counts the incoming voters only.
    IgnoreOutgoing,
    /// Acceptances of entries that were cut are told, and their late syncs counted.
    TellCut,
    /// A leader commits what a majority has, of whatever term (Raft section 5.4.2).
    CommitOldTerm,
    /// Who is asked to take over leads at once, without an election.
    CrownSuccessor,
    /// A replica opens with the membership of its commit index, however much its log proves.
    ForgetProvenMembership,
    /// A sole voter speaks as a leader before its term is synced.
    SpeakEarly,
    /// A candidate that was elected and deposed within one turn forgets that it was.
    ForgetElection,
    /// Who was removed may go as soon as its leader knows that the change is committed.
    LeaveEarly,
    /// A follower whose leader fell silent never asks whether its shard is there.
    QuietForever,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Bug] = &[
        Bug::AcceptEarly,
        Bug::VoteEarly,
        Bug::CountUnsynced,
        Bug::ForgetHardState,
        Bug::VoteTwice,
        Bug::VoteForShorter,
        Bug::CutByOldAppend,
        Bug::AcceptAll,
        Bug::CommitAll,
        Bug::IgnoreOutgoing,
        Bug::TellCut,
        Bug::CommitOldTerm,
        Bug::CrownSuccessor,
        Bug::ForgetProvenMembership,
        Bug::SpeakEarly,
        Bug::ForgetElection,
        Bug::LeaveEarly,
        Bug::QuietForever,
    ];
}
