//! The walk over proven frames, from the committed place to the last entry that anybody may have been promised.
//!
//! It reads past the page cache: after a failed sync the cache shows bytes that the device does not have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::RecoveryReport;
use crate::bugs::Bug;
use crate::error::Result;
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::frame::{EntryKind, FrameFault, FrameHeader};
use crate::ids::FileId;
use crate::log::Entry;
use crate::log::effects::Effects;
use crate::membership::Memberships;
use crate::place::Place;
use crate::ranges::Ranges;
use crate::scan::FrameScan;
use crate::segment::{DamagedRange, Segment};
use crate::shared::Shared;
use crate::table::TableReplica;
use crate::terms::TermRuns;

/// A live file and where it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) id: FileId,
    /// The place its first entry continues.
    pub(crate) first: Place,
    /// Where the next file goes on, bytes; `u64::MAX` for the last.
    pub(crate) end: u64,
    pub(crate) sealed: bool,
    /// Its header, when the journal made it.
    pub(crate) header: Option<FileHeader>,
}

/// What the walk found.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Entries behind the table's committed place.
    pub(crate) entries: VecDeque<Entry>,
    /// Behind the last of them.
    pub(crate) tail: Place,
    /// Their terms, and those before that are known.
    pub(crate) terms: TermRuns,
    /// The table's, and the config entries behind.
    pub(crate) memberships: Memberships,
    /// The last entry can't be proven.
    pub(crate) broken: Option<String>,
    /// Terms or config entries were lost.
    pub(crate) unproven: Option<String>,
}

struct Walker<'a> {
    shared: &'a Arc<Shared>,
    row: &'a TableReplica,
    links: &'a [Link],
    segments: &'a [Arc<Segment>],
    proven: &'a BTreeMap<FileId, Ranges>,
    report: &'a mut RecoveryReport,
    /// Index into `links`.
    at: usize,
    pos: u64,
    place: Place,
    entries: VecDeque<Entry>,
    terms: TermRuns,
    memberships: Memberships,
    broken: Option<String>,
    unproven: Option<String>,
}

/// Walks one replica.
pub(crate) fn walk(
    shared: &Arc<Shared>,
    row: &TableReplica,
    links: &[Link],
    segments: &[Arc<Segment>],
    proven: &BTreeMap<FileId, Ranges>,
    report: &mut RecoveryReport,
) -> Result<Outcome> {
    let place = row.committed;
    let mut terms = row.terms.clone();
    terms.cut(place.index, place.term);
    let found = links.iter().position(|l| l.id == place.file);
    let mut walker = Walker {
        shared,
        row,
        links,
        segments,
        proven,
        report,
        at: found.unwrap_or(0),
        pos: if found.is_some() {
            place.pos
        } else {
            FIRST_FRAME
        },
        place,
        entries: VecDeque::new(),
        terms,
        memberships: Memberships::new(row.membership.clone()),
        broken: None,
        unproven: None,
    };
    while walker.file()? {}
    Ok(Outcome {
        entries: walker.entries,
        tail: walker.place,
        terms: walker.terms,
        memberships: walker.memberships,
        unproven: walker.unproven,
        broken: walker.broken,
    })
}

impl Walker<'_> {
    /// Walks one file; true when the next is to be walked.
    fn file(&mut self) -> Result<bool> {
        let Some(link) = self.links.get(self.at) else {
            return Ok(false);
        };
        let segment = self.segments[self.at].clone();
        let count_all = self.shared.has_bug(Bug::CountUnsynced);
        if segment.damage_at(FIRST_FRAME).is_none() {
            let handle = segment.handle(self.shared)?;
            let from_device = !self.shared.has_bug(Bug::TrustCache);
            loop {
                if self.pos >= link.end {
                    break;
                }
                let proven = self
                    .proven
                    .get(&link.id)
                    .map_or(self.pos, |r| r.end_at(self.pos));
                let mut limit = proven.min(link.end);
                if count_all {
                    limit = link.end.min(handle.file.len().unwrap_or(limit));
                }
                if limit <= self.pos {
                    break;
                }
                let mut scan = FrameScan::new(&*handle.file, segment.name(), limit, from_device);
                if !self.range(&segment, &mut scan, limit)? {
                    return Ok(false);
                }
            }
        } else if !self.skip_missing(link) {
            return Ok(false);
        }
        self.next_file(link)
    }

    /// Walks one proven range. False: the log ends here.
    fn range(
        &mut self,
        segment: &Arc<Segment>,
        scan: &mut FrameScan<'_>,
        limit: u64,
    ) -> Result<bool> {
        while self.pos < limit {
            let (index, offset, chain) =
                (self.place.index, self.place.next_offset, self.place.chain);
            let checked = scan.frame(self.pos)?.and_then(|(header, payload)| {
                header.check_follows(index, offset, chain)?;
                Ok((header, Effects::of(&header, payload)))
            });
            match checked {
                Ok((header, effects)) => {
                    self.report.bytes_walked += header.frame_len();
                    self.accept(segment, &header, self.pos, effects);
                }
                // Only its beginning is proven: nobody was promised it.
                Err(FrameFault::Short) => return Ok(false),
                Err(_) if self.shared.has_bug(Bug::CountUnsynced) => return Ok(false),
                // A newer program wrote it: skipping it would change what the log means.
                Err(fault @ (FrameFault::Kind(_) | FrameFault::Version(_))) => {
                    let name = segment.name();
                    self.broken = Some(format!(
                        "{name} at {}: {fault}; run the newer version",
                        self.pos
                    ));
                    return Ok(false);
                }
                Err(fault) => {
                    if !self.damage(segment, scan, fault)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn accept(&mut self, segment: &Segment, header: &FrameHeader, pos: u64, effects: Effects) {
        self.place = Place {
            file: segment.id,
            pos: pos + header.frame_len(),
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            time_ms: header.append_time_ms,
        };
        self.pos = self.place.pos;
        let committed = self.row.committed.index;
        self.terms.push(header.index, header.term, committed);
        if let Some(config) = effects.config {
            self.memberships.push(header.index, config);
        }
        self.entries.push_back(Entry {
            place: self.place,
            producer: effects.producer,
            log_start: effects.log_start,
        });
    }

    /// A proven frame is bad. It is quarantined; the log goes on behind it if what follows can be proven.
    fn damage(
        &mut self,
        segment: &Arc<Segment>,
        scan: &mut FrameScan<'_>,
        fault: FrameFault,
    ) -> Result<bool> {
        let (from, pos) = (self.place.next_offset, self.pos);
        let what = format!("{} at {pos}: {fault}", segment.name());
        self.report.damage.push(what.clone());
        if let Ok(header) = scan.header(pos)?
            && header
                .check_follows(self.place.index, self.place.next_offset, self.place.chain)
                .is_ok()
        {
            // The entry is known, only its payload is lost.
            if header.kind == EntryKind::Config {
                self.unproven.get_or_insert_with(|| what.clone());
            }
            self.accept(segment, &header, pos, Effects::default());
        } else if let Some((at, header)) = scan.next_whole(pos, self.place.index)? {
            self.pos = at;
            let lost_to = header.base_offset;
            self.quarantine(segment, (pos, at), (from, lost_to), what);
            let effects = scan
                .frame(at)?
                .map(|(header, payload)| Effects::of(&header, payload));
            self.bridge(header.index, header.term);
            self.accept(segment, &header, at, effects.unwrap_or_default());
            return Ok(true);
        } else if self.row.tail.file == segment.id
            && self.row.tail.index > self.place.index
            && self.row.tail.pos > pos
            && self.row.tail.pos <= self.links[self.at].end
        {
            // Unless a newer file cut it off.
            self.jump(self.row.tail);
        } else if let Some(next) = self
            .links
            .get(self.at + 1)
            .filter(|n| n.first.index > self.place.index)
        {
            self.jump(next.first);
        } else {
            self.broken = Some(format!(
                "{what}; the last entry can't be proven without another replica"
            ));
            return Ok(false);
        }
        self.quarantine(
            segment,
            (pos, self.pos),
            (from, self.place.next_offset),
            what,
        );
        Ok(true)
    }

    fn quarantine(&self, segment: &Segment, pos: (u64, u64), offsets: (i64, i64), what: String) {
        segment.add_damage(DamagedRange { pos, offsets, what });
    }

    /// Goes on behind an entry that is known although its frame is lost.
    fn jump(&mut self, place: Place) {
        self.bridge(place.index, place.term);
        self.place = place;
        self.pos = place.pos;
        self.entries.push_back(Entry {
            place,
            producer: None,
            log_start: None,
        });
    }

    /// The entry before `index`, or that one too, can't be read: what is known of the terms in between. Any of them
    /// may have been a config entry.
    fn bridge(&mut self, index: u64, term: u64) {
        let from = self.place;
        if index <= from.index {
            return;
        }
        let in_table = self.links[self.at].header.is_none() && index <= self.row.tail.index;
        if in_table && self.row.terms.base() <= from.index {
            self.terms.extend_from(&self.row.terms, from.index, index);
        }
        if self.terms.get(index) != Some(term) {
            self.terms.cut(from.index, from.term);
            if index == from.index + 1 {
                self.terms.push(index, term, self.row.committed.index);
            } else {
                self.terms = TermRuns::at(index, term);
            }
        }
        let lost = || format!("entries behind {} up to {index} can't be read", from.index);
        self.unproven.get_or_insert_with(lost);
    }

    /// The whole file is gone. False: so is the end of the log.
    fn skip_missing(&mut self, link: &Link) -> bool {
        if let Some(next) = self.links.get(self.at + 1) {
            self.jump(next.first);
            self.pos = link.end;
            return true;
        }
        let proven = self.proven.get(&link.id).and_then(Ranges::end).unwrap_or(0);
        let mut known = FIRST_FRAME;
        if self.row.tail.file == link.id {
            known = self.row.tail.pos;
            if self.row.tail.index > self.place.index {
                self.jump(self.row.tail);
            }
        }
        if proven > known {
            self.broken = Some("the segment that held the last entries is missing".into());
        }
        false
    }

    fn next_file(&mut self, link: &Link) -> Result<bool> {
        if self.pos < link.end {
            return Ok(false);
        }
        let Some(next) = self.links.get(self.at + 1) else {
            return Ok(false);
        };
        if (next.first.index, next.first.chain) != (self.place.index, self.place.chain) {
            return Ok(false);
        }
        self.at += 1;
        self.pos = FIRST_FRAME;
        Ok(true)
    }
}
