//! Which producer epochs were granted, so that no two callers get the same one.
//!
//! Only ids whose epoch was ever raised have an entry. At most [`EPOCHS_REMEMBERED`] are remembered; of an id that may
//! have been forgotten nothing is granted any more, its owner gets a new id instead, which is always right.

use std::collections::{HashMap, VecDeque};

/// Producer ids whose raised epoch is remembered; the id raised first is forgotten first.
pub(crate) const EPOCHS_REMEMBERED: usize = 16_384;

/// The highest epochs granted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Epochs {
    highest: HashMap<i64, i32>,
    /// Ids in the order in which they were raised first.
    order: VecDeque<i64>,
    forgotten_below: i64,
}

impl Epochs {
    /// None granted; those of ids below `forgotten_below` are not known.
    pub(crate) fn new(forgotten_below: i64) -> Epochs {
        Epochs {
            forgotten_below,
            ..Epochs::default()
        }
    }

    /// The highest epoch granted to an id; `None` when that is not known any more.
    pub(crate) fn highest(&self, id: i64) -> Option<i32> {
        match self.highest.get(&id) {
            Some(&epoch) => Some(epoch),
            None => (id >= self.forgotten_below).then_some(0),
        }
    }

    /// First id of which surely no grant was forgotten.
    pub(crate) fn forgotten_below(&self) -> i64 {
        self.forgotten_below
    }

    /// Ids with their highest epoch, in the order in which they are forgotten.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, i32)> {
        self.order
            .iter()
            .filter_map(|id| self.highest.get(id).map(|&epoch| (*id, epoch)))
    }

    /// Notes a grant; false, and nothing noted, unless it is above every earlier one.
    pub(crate) fn grant(&mut self, id: i64, epoch: i32) -> bool {
        if let Some(highest) = self.highest.get_mut(&id) {
            let above = epoch > *highest;
            *highest = epoch.max(*highest);
            return above;
        }
        if self.order.len() == EPOCHS_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.highest.remove(&oldest);
            self.forgotten_below = self.forgotten_below.max(oldest.saturating_add(1));
        }
        self.order.push_back(id);
        self.highest.insert(id, epoch);
        true
    }
}
