//! What came out of the core and is not committed yet: records that wait for the next batch, and effects that wait for records.

use std::collections::VecDeque;

use super::log::BATCH_BYTES;
use crate::groups::core::Groups;
use crate::groups::core::api::{Effect, Output};
use crate::groups::record::Record;

/// No more inputs are taken while this many bytes of records wait.
const QUEUED_BYTES_MAX: usize = 4 << 20;
/// No more inputs are taken while this many effects are held back.
const EFFECTS_MAX: usize = 65_536;
/// Bytes since the last image before a new one is due, at least.
const IMAGE_AFTER_BYTES: u64 = 1 << 20;
/// And at least this many times the size of the last image.
const IMAGE_FACTOR: u64 = 4;

#[derive(Default)]
pub(super) struct Appends {
    /// Encoded, in order.
    queue: VecDeque<Vec<u8>>,
    queue_bytes: usize,
    /// Records that ever came out, and those of them that are committed.
    appended: u64,
    committed: u64,
    /// Records in the batch that is on its way.
    flying: u64,
    /// Effects, and how many records must be committed before each.
    held: VecDeque<(u64, Effect)>,
    /// Bytes in the log behind the last image.
    since_image: u64,
    image_bytes: u64,
    image: Option<Image>,
}

/// An image that is not committed as a whole.
struct Image {
    /// Numbers of its first record and of its last.
    begin: u64,
    end: u64,
    /// Offset of the batch that begins with it.
    offset: Option<i64>,
}

impl Appends {
    /// For a log with so many bytes of records behind an image of so many.
    pub(super) fn new(since_image: u64, image_bytes: u64) -> Appends {
        Appends {
            since_image,
            image_bytes,
            ..Appends::default()
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue_bytes >= QUEUED_BYTES_MAX || self.held.len() >= EFFECTS_MAX
    }

    /// Takes an output in. Effects are held back until everything before them is committed.
    pub(super) fn take(&mut self, output: Output) {
        for record in &output.records {
            self.push(record.encode(false));
        }
        let after = self.appended;
        let effects = output.effects.into_iter();
        self.held.extend(effects.map(|effect| (after, effect)));
    }

    fn push(&mut self, record: Vec<u8>) {
        self.queue_bytes += record.len();
        self.since_image += record.len() as u64;
        self.queue.push_back(record);
        self.appended += 1;
    }

    /// Queues an image, if one is due.
    pub(super) fn image_if_due(&mut self, groups: &Groups) {
        let due = IMAGE_AFTER_BYTES.max(self.image_bytes * IMAGE_FACTOR);
        if self.image.is_some() || self.since_image < due {
            return;
        }
        let begin = self.appended + 1;
        let before = self.since_image;
        self.push(Record::ImageBegin.encode(false));
        groups.image(|record| self.push(record.encode(record.is_state())));
        self.push(Record::ImageEnd.encode(false));
        self.image_bytes = self.since_image - before;
        self.since_image = 0;
        self.image = Some(Image {
            begin,
            end: self.appended,
            offset: None,
        });
    }

    /// The next batch, if there is something and none is on its way. An image begins a batch of its own.
    pub(super) fn next_batch(&mut self) -> Option<Vec<Vec<u8>>> {
        if self.flying > 0 || self.queue.is_empty() {
            return None;
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        let image_begin = self.image.as_ref().map(|image| image.begin);
        while let Some(record) = self.queue.front() {
            let number = self.committed + batch.len() as u64 + 1;
            let full = bytes + record.len() > BATCH_BYTES || image_begin == Some(number);
            if full && !batch.is_empty() {
                break;
            }
            bytes += record.len();
            batch.extend(self.queue.pop_front());
        }
        self.queue_bytes -= bytes;
        self.flying = batch.len() as u64;
        Some(batch)
    }

    /// The batch on its way is committed, at this offset. Returns where the log may begin now, if an image is whole.
    pub(super) fn batch_committed(&mut self, base_offset: i64) -> Option<i64> {
        let first = self.committed + 1;
        self.committed += std::mem::take(&mut self.flying);
        let image = self.image.as_mut()?;
        if image.begin == first {
            image.offset = Some(base_offset);
        }
        if image.end > self.committed {
            return None;
        }
        self.image.take()?.offset
    }

    /// Effects that may leave now, in order.
    pub(super) fn released(&mut self) -> impl Iterator<Item = Effect> + '_ {
        let committed = self.committed;
        let free = self.held.partition_point(|(after, _)| *after <= committed);
        self.held.drain(..free).map(|(_, effect)| effect)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::groups::core::api::{Answer, Call};

    fn output(records: usize, call: Call) -> Output {
        Output {
            records: vec![Record::Mark; records],
            effects: vec![Effect::Answer {
                call,
                answer: Answer::Done,
            }],
            ..Output::default()
        }
    }

    fn calls(appends: &mut Appends) -> Vec<Call> {
        let released = appends.released();
        let call = |effect| match effect {
            Effect::Answer { call, .. } => call,
            Effect::Tell { link, .. } => link,
        };
        released.map(call).collect()
    }

    #[test]
    fn effects_leave_in_order_and_only_behind_their_records() {
        let mut appends = Appends::new(0, 0);
        appends.take(output(0, 1));
        assert_eq!(calls(&mut appends), [1]);
        appends.take(output(2, 2));
        assert_eq!(appends.next_batch().unwrap().len(), 2);
        appends.take(output(1, 3));
        appends.take(output(0, 4));
        assert!(appends.next_batch().is_none());
        assert!(calls(&mut appends).is_empty());
        assert_eq!(appends.batch_committed(0), None);
        assert_eq!(calls(&mut appends), [2]);
        assert_eq!(appends.next_batch().unwrap().len(), 1);
        appends.batch_committed(2);
        assert_eq!(calls(&mut appends), [3, 4]);
    }

    #[test]
    fn the_log_begins_with_an_image_only_when_that_is_whole() {
        let groups = Groups::new(Arc::default(), Arc::default());
        let mut appends = Appends::new(IMAGE_AFTER_BYTES, 0);
        appends.take(output(1, 1));
        appends.image_if_due(&groups);
        appends.image_if_due(&groups);
        // What came before it is in a batch of its own.
        assert_eq!(appends.next_batch().unwrap().len(), 1);
        assert_eq!(appends.batch_committed(7), None);
        let image = appends.next_batch().unwrap();
        assert_eq!(image[0], Record::ImageBegin.encode(false));
        assert_eq!(image.len(), 3);
        assert_eq!(appends.batch_committed(8), Some(8));
        appends.image_if_due(&groups);
        assert!(appends.next_batch().is_none());
    }
}
