//! The bound on open segment files and maps: the host allows about 65,000 maps and a limited number of descriptors.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::segment::Segment;

/// Segments with an open handle, in the order in which they are considered for closing.
#[derive(Debug)]
pub(crate) struct Handles {
    open_files_max: usize,
    open: Mutex<VecDeque<Weak<Segment>>>,
}

impl Handles {
    pub(crate) fn new(open_files_max: usize) -> Self {
        Handles {
            open_files_max,
            open: Mutex::default(),
        }
    }

    /// Counts a segment that was just opened, and closes others when there are too many: second chance, unsynced
    /// ones stay.
    pub(crate) fn register(&self, segment: &Arc<Segment>) {
        let mut open = self.open.lock();
        open.push_back(Arc::downgrade(segment));
        let mut chances = 2 * open.len();
        while open.len() > self.open_files_max && chances > 0 {
            chances -= 1;
            let Some(oldest) = open.pop_front() else {
                break;
            };
            let Some(candidate) = oldest.upgrade() else {
                continue;
            };
            if Arc::ptr_eq(&candidate, segment) || !candidate.release() {
                open.push_back(oldest);
            }
        }
    }

    /// Segments that are mapped now.
    pub(crate) fn mapped(&self) -> usize {
        let open = self.open.lock();
        open.iter()
            .filter(|s| s.upgrade().is_some_and(|s| s.is_mapped()))
            .count()
    }
}
