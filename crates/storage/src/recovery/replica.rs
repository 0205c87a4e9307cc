//! Replaying the journal, sorted by replica: which files are live, what is proven of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use super::RecoveryReport;
use super::files::Listing;
use super::walk::{self, Link};
use crate::bugs::Bug;
use crate::codec::Reader;
use crate::disk::OpenMode;
use crate::error::{Error, Result};
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::journal::cycle::Record;
use crate::log::LogParts;
use crate::membership::{Membership, Memberships};
use crate::options::{HardState, LogConfig};
use crate::place::Place;
use crate::producers::Producers;
use crate::ranges::Ranges;
use crate::segment::{DamagedRange, Segment};
use crate::shared::Shared;
use crate::table::{Table, TableFile, TableReplica};

/// What the journal says of one replica.
struct Story<'a> {
    row: TableReplica,
    /// Files since the table, in order of creation.
    new_files: Vec<FileHeader>,
    frames: Vec<(FileId, u64, &'a [u8])>,
    proven: BTreeMap<FileId, Ranges>,
    /// Something happened since the table.
    touched: bool,
}

/// The journal, sorted by replica.
pub(crate) struct Replay<'a> {
    shared: &'a Arc<Shared>,
    listing: &'a Listing,
    clean: bool,
    stories: BTreeMap<ReplicaId, Story<'a>>,
    owners: BTreeMap<FileId, ReplicaId>,
    /// Rows that records of the journal name: it may be replayed from the other table again.
    named_installs: Vec<FileId>,
    damage: Vec<String>,
}

/// What replay makes of a directory.
pub(crate) struct Recovered {
    pub(crate) logs: Vec<(ReplicaSpec, LogParts)>,
    /// Files that no log has.
    pub(crate) dead: Vec<Arc<Segment>>,
    /// Dead once no table needs the journal's cycles of before.
    pub(crate) dying: Vec<Arc<Segment>>,
}

impl<'a> Replay<'a> {
    /// `clean`: nothing was written since the table.
    pub(crate) fn new(
        shared: &'a Arc<Shared>,
        table: &Table,
        clean: bool,
        listing: &'a Listing,
    ) -> Self {
        let mut replay = Replay {
            shared,
            listing,
            clean,
            stories: BTreeMap::new(),
            owners: BTreeMap::new(),
            named_installs: Vec::new(),
            damage: Vec::new(),
        };
        for row in &table.replicas {
            replay.begin(row.clone());
        }
        replay
    }

    fn begin(&mut self, row: TableReplica) {
        let mut proven: BTreeMap<FileId, Ranges> = BTreeMap::new();
        for file in &row.files {
            self.owners.insert(file.id, row.spec.replica);
            proven
                .entry(file.id)
                .or_default()
                .add(FIRST_FRAME, file.end);
        }
        let story = Story {
            touched: row.committed.index < row.tail.index,
            row,
            new_files: Vec::new(),
            frames: Vec::new(),
            proven,
        };
        self.stories.insert(story.row.spec.replica, story);
    }

    /// Takes one record. A record of a replica or file that is gone says nothing: what was live at the table is
    /// listed there, what came later has a record of its own.
    ///
    /// # Errors
    /// I/O errors, and [`Error::NewerFormat`].
    pub(crate) fn record(&mut self, record: &Record<'a>) -> Result<()> {
        match *record {
            Record::Install {
                replica,
                file,
                last_file,
            } => self.install(replica, file, last_file)?,
            Record::Create { spec } => {
                if !self.stories.contains_key(&spec.replica) {
                    self.begin(empty_row(spec));
                }
            }
            Record::Remove { replica } => {
                self.stories.remove(&replica);
            }
            Record::HardState { replica, state } => {
                if let Some(story) = self.stories.get_mut(&replica) {
                    let commit = story.row.hard.commit.max(state.commit);
                    story.row.hard = state;
                    story.row.hard.commit = commit;
                }
            }
            Record::NewFile { header } => {
                if let Some(story) = self.stories.get_mut(&header.spec.replica)
                    && self.owners.insert(header.id, header.spec.replica).is_none()
                {
                    story.new_files.push(header);
                    story.touched = true;
                }
            }
            Record::Frame { file, pos, bytes } => {
                if let Some(story) = self.story_of(file) {
                    story.frames.push((file, pos, bytes));
                    story.touched = true;
                }
            }
            Record::Named { file, upto } => {
                if let Some(story) = self.story_of(file) {
                    story.proven.entry(file).or_default().add(FIRST_FRAME, upto);
                    story.touched = true;
                }
            }
        }
        Ok(())
    }

    /// A snapshot became the log, and everything of before is dead; unless the table tells of it already.
    fn install(&mut self, replica: ReplicaId, file: FileId, last_file: FileId) -> Result<()> {
        self.named_installs.push(file);
        let Some(story) = self.stories.get_mut(&replica) else {
            return Ok(());
        };
        if story.row.files.iter().any(|f| f.id == last_file) {
            return Ok(());
        }
        let path = self.shared.install_path(&story.row.spec, file);
        let row = match self.shared.disk.open(&path, OpenMode::Existing) {
            Ok(handle) => TableReplica::read_install(&*handle, file)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(format!("opening {}", path.display()))(e)),
        };
        match row.filter(|row| row.spec == story.row.spec) {
            Some(row) => {
                let owned = row.files.iter().map(|f| (f.id, replica));
                self.owners.extend(owned);
                story.replace(row, self.shared.has_bug(Bug::KeepReplaced));
            }
            None => {
                // Whatever the log was is not the log any more.
                story.row.broken = true;
                let what = format!("{}: the row of an install is not whole", path.display());
                self.damage.push(what);
            }
        }
        Ok(())
    }

    fn story_of(&mut self, file: FileId) -> Option<&mut Story<'a>> {
        let owner = self.owners.get(&file)?;
        self.stories.get_mut(owner)
    }

    /// Makes the logs, and lists the files that none of them has.
    pub(crate) fn finish(self, report: &mut RecoveryReport) -> Result<Recovered> {
        let Replay {
            shared,
            listing,
            clean,
            stories,
            named_installs,
            damage,
            ..
        } = self;
        report.damage.extend(damage);
        let mut logs = Vec::new();
        let mut live = BTreeMap::new();
        for story in stories.into_values() {
            let spec = story.row.spec;
            let parts = story.finish(shared, listing, clean, report)?;
            for file in &parts.files {
                live.insert(file.id, ());
            }
            logs.push((spec, parts));
        }
        let file = |(id, path): (&FileId, &PathBuf)| {
            let path = path.clone();
            Arc::new(Segment::found(*id, Place::default(), path, 0, false, 0))
        };
        let dead_files = listing
            .files
            .iter()
            .filter(|(id, _)| !live.contains_key(id));
        let (named, stray): (Vec<_>, Vec<_>) = listing
            .installs
            .iter()
            .partition(|(id, _)| named_installs.contains(id));
        Ok(Recovered {
            logs,
            dead: dead_files.chain(stray).map(file).collect(),
            dying: named.into_iter().map(file).collect(),
        })
    }
}

impl<'a> Story<'a> {
    /// An installed row takes the place of the log so far. Term and vote stay.
    fn replace(&mut self, row: TableReplica, keep_replaced: bool) {
        let before = std::mem::replace(&mut self.row, row);
        let installed = self.row.committed.index;
        self.row.hard = HardState {
            commit: before.hard.commit.max(installed),
            ..before.hard
        };
        self.row.log_start = self.row.log_start.max(before.log_start);
        if keep_replaced {
            self.row.tail_closed = false;
        } else {
            self.new_files.clear();
            self.frames.clear();
            self.proven.clear();
        }
        for file in &self.row.files {
            let proven = self.proven.entry(file.id).or_default();
            proven.add(FIRST_FRAME, file.end);
        }
        self.touched = keep_replaced;
    }

    fn finish(
        mut self,
        shared: &Arc<Shared>,
        listing: &Listing,
        clean: bool,
        report: &mut RecoveryReport,
    ) -> Result<LogParts> {
        let producers = Producers::decode(&mut Reader::new(&self.row.producers))
            .map_err(|m| Error::corrupt("the checkpoint table's producer state", m.0))?;
        let links = self.links();
        let segments = self.segments(shared, &links);
        for (at, segment) in segments.iter().enumerate() {
            if !listing.files.contains_key(&segment.id) && links[at].header.is_none() {
                self.file_is_missing(segment, links.get(at + 1), report);
            } else {
                self.restore_file(shared, listing, segment, &links[at], report)?;
            }
        }
        if shared.has_bug(Bug::ForgetMembership) {
            self.row.membership = Membership::default();
        }
        if !self.touched {
            return Ok(self.untouched(segments, producers, clean));
        }
        report.logs_walked += 1;
        let outcome = walk::walk(shared, &self.row, &links, &segments, &self.proven, report)?;
        Ok(self.walked(shared, outcome, segments, producers))
    }

    /// Live files in order with where each ends: the table's, then what the journal's new files make of them. The
    /// newest cut wins, also before the table's position.
    fn links(&self) -> Vec<Link> {
        let mut links: Vec<Link> = self.row.files.iter().map(Link::of_table).collect();
        if let Some(active) = links.last_mut().filter(|_| !self.row.tail_closed) {
            // Entries after the table went on behind its end.
            active.end = u64::MAX;
        }
        for header in &self.new_files {
            let cut = header.cut;
            let joined = links.iter().position(|l| l.id == cut.file);
            if let Some(at) = joined {
                links.truncate(at + 1);
                links[at].end = cut.pos;
            } else if cut.file == FileId::NONE
                || links.is_empty()
                || links[0].first.index == cut.index && links[0].first.chain == cut.chain
            {
                // Right at the log's first entry: the file before is gone.
                links.clear();
            } else {
                continue;
            }
            links.push(Link {
                id: header.id,
                first: cut,
                end: u64::MAX,
                sealed: false,
                header: Some(*header),
            });
        }
        links
    }

    fn segments(&self, shared: &Shared, links: &[Link]) -> Vec<Arc<Segment>> {
        let map_len = LogConfig::default().segment_bytes;
        let segment = |link: &Link| {
            let path = shared.segment_path(&self.row.spec, link.id);
            let known = self
                .proven
                .get(&link.id)
                .and_then(Ranges::end)
                .unwrap_or(FIRST_FRAME);
            let end = link.end.min(known.max(self.frames_end(link.id)));
            Arc::new(Segment::found(
                link.id,
                link.first,
                path,
                end,
                link.sealed,
                map_len,
            ))
        };
        links.iter().map(segment).collect()
    }

    fn frames_end(&self, file: FileId) -> u64 {
        let ends = self.frames.iter().filter(|f| f.0 == file);
        ends.map(|(_, pos, bytes)| pos + bytes.len() as u64)
            .max()
            .unwrap_or(0)
    }

    /// Writes what the journal holds of a file: its header if the file is missing, and frames.
    fn restore_file(
        &mut self,
        shared: &Arc<Shared>,
        listing: &Listing,
        segment: &Arc<Segment>,
        link: &Link,
        report: &mut RecoveryReport,
    ) -> Result<()> {
        let io = || Error::io(format!("restoring {}", segment.name()));
        if link.header.is_some() {
            // Whether its entry is durable is not known, even if the page cache shows it.
            if let Some(dir) = segment.path.parent() {
                shared.dirs.changed(dir);
            }
        }
        if let Some(header) = &link.header
            && !listing.files.contains_key(&link.id)
        {
            if let Some(dir) = segment.path.parent() {
                shared.create_topic_dir(dir)?;
            }
            let file = shared
                .disk
                .open(&segment.path, OpenMode::CreateOrOpen)
                .map_err(io())?;
            file.write_at(0, &[&header.encode()]).map_err(io())?;
        } else if let Some(header) = &link.header {
            let file = shared
                .disk
                .open(&segment.path, OpenMode::Existing)
                .map_err(io())?;
            file.write_at(0, &[&header.encode()]).map_err(io())?;
        }
        let mut ranges = Ranges::default();
        let mut wrote = false;
        for (_, pos, bytes) in self.frames.iter().filter(|f| f.0 == link.id) {
            let end = pos + bytes.len() as u64;
            if end <= link.end {
                let handle = segment.handle(shared)?;
                handle.file.write_at(*pos, &[bytes]).map_err(io())?;
                ranges.add(*pos, end);
                report.frames += 1;
                wrote = true;
            }
            self.proven.entry(link.id).or_default().add(*pos, end);
        }
        if wrote || link.header.is_some() || self.touched {
            segment.mark_unsynced();
        }
        Ok(())
    }

    /// A file that only the table knows and that is missing is damage.
    fn file_is_missing(
        &mut self,
        segment: &Arc<Segment>,
        next: Option<&Link>,
        report: &mut RecoveryReport,
    ) {
        for (file, pos, bytes) in &self.frames {
            if *file == segment.id {
                let proven = self.proven.entry(*file).or_default();
                proven.add(*pos, pos + bytes.len() as u64);
            }
        }
        // Nothing can go on in it.
        self.row.tail_closed |= next.is_none();
        let range = DamagedRange {
            pos: (0, u64::MAX),
            offsets: (
                segment.first.next_offset,
                next.map_or(self.row.tail.next_offset, |n| n.first.next_offset),
            ),
            what: format!("{} is missing", segment.name()),
        };
        report.damage.push(range.what.clone());
        segment.add_damage(range);
    }

    /// Nothing happened since the table: its row is the log.
    fn untouched(self, files: Vec<Arc<Segment>>, producers: Producers, clean: bool) -> LogParts {
        let row = self.row;
        let membership = row.membership;
        LogParts {
            hard: bounded(row.hard, &row.tail),
            unborn: false,
            tail: row.tail,
            tail_closed: row.tail_closed || !clean,
            log_start: row.log_start,
            committed: row.committed,
            entries: VecDeque::new(),
            producers: producers.clone(),
            producers_committed: producers,
            terms: row.terms,
            memberships: Memberships::new(membership),
            unproven: row.unproven.then(unproven_before),
            files,
            dead: Vec::new(),
            broken: row.broken.then(broken_before),
        }
    }

    fn walked(
        self,
        shared: &Shared,
        outcome: walk::Outcome,
        mut segments: Vec<Arc<Segment>>,
        mut producers: Producers,
    ) -> LogParts {
        let live = segments
            .iter()
            .position(|s| s.id == outcome.tail.file)
            .map_or(0, |i| i + 1);
        let dead = segments.split_off(live);
        if let Some(last) = segments.last() {
            last.cut_at(outcome.tail.pos);
        }
        let mut hard = self.row.hard;
        if !shared.has_bug(Bug::CommitBeyondEnd) {
            hard = bounded(hard, &outcome.tail);
        }
        let mut entries = outcome.entries;
        let mut committed = self.row.committed;
        let mut log_start = self.row.log_start;
        while let Some(entry) = entries.front().filter(|e| e.place.index <= hard.commit) {
            committed = entry.place;
            if let Some(write) = &entry.producer {
                producers.apply(write);
            }
            let start = entry.log_start.unwrap_or(log_start);
            log_start = log_start.max(start.min(committed.next_offset));
            entries.pop_front();
        }
        if !shared.has_bug(Bug::CommitBeyondEnd) {
            // An index inside damage has no place.
            hard.commit = committed.index;
        }
        let mut latest = producers.clone();
        for entry in &entries {
            if let Some(write) = &entry.producer {
                latest.apply(write);
            }
        }
        let mut memberships = outcome.memberships;
        memberships.commit(committed.index);
        LogParts {
            hard,
            unborn: false,
            tail: outcome.tail,
            tail_closed: true,
            log_start,
            committed,
            entries,
            producers: latest,
            producers_committed: producers,
            terms: outcome.terms,
            memberships,
            unproven: outcome.unproven.or(self.row.unproven.then(unproven_before)),
            files: segments,
            dead,
            broken: outcome.broken.or(self.row.broken.then(broken_before)),
        }
    }
}

/// Why a log is broken whose damage an earlier start met.
fn broken_before() -> String {
    "at an earlier start damage hid the last entry; it can't be proven without another replica"
        .into()
}

/// Why a log is unproven whose damage an earlier start met.
fn unproven_before() -> String {
    "at an earlier start damage took terms or config entries; another replica must tell of them"
        .into()
}

/// Commit not beyond the last entry, term not below its (both make Raft panic). A raised term has no vote.
fn bounded(mut hard: HardState, tail: &Place) -> HardState {
    hard.commit = hard.commit.min(tail.index);
    if hard.term < tail.term {
        hard.term = tail.term;
        hard.vote = 0;
    }
    hard
}

fn empty_row(spec: ReplicaSpec) -> TableReplica {
    let parts = LogParts::empty(&spec);
    TableReplica {
        spec,
        hard: parts.hard,
        log_start: 0,
        tail_closed: false,
        broken: false,
        unproven: false,
        tail: parts.tail,
        committed: parts.committed,
        files: Vec::new(),
        producers: Arc::new(vec![0; 4]),
        membership: Membership::default(),
        terms: parts.terms,
    }
}

impl Link {
    fn of_table(file: &TableFile) -> Link {
        Link {
            id: file.id,
            first: file.first,
            end: file.end,
            sealed: file.sealed,
            header: None,
        }
    }
}
