//! The rules of sending, without I/O and without a clock: events and the time go in, [`Action`]s come out.
//!
//! A **slot** is a partition, a **route** a stream to the broker that leads it. A batch waits in its slot's `pending`
//! queue until it gets a place in the slot's `window` (at most five batches, more only while batches are cut), and with it a sequence.
//!
//! **The rules** (of an idempotent producer; the broker takes a batch only if its sequence follows on the last one
//! taken, answers a repeated one with the offset of its first copy, and refuses all others):
//!
//! 1. A sequence is given when a batch is first handed to a stream, and the batch keeps it for all retries: the
//!    same bytes go again. So *has a sequence* means *may have been written*.
//! 2. When a stream is lost, all batches without an answer are *doubtful* and go again, in order, on the next one.
//! 3. When a batch is refused and may be sent again (no leader, full, overloaded), nothing of its slot is sent until
//!    every batch of the window has an answer; then all that are left go again, in order. At most one copy of
//!    a batch is under way on a stream at any time, and at most five batches: brokers remember no more.
//! 4. A batch whose deadline passes in the pending queue fails cleanly: it was not written and has no sequence, so
//!    none is missing.
//! 5. A batch whose deadline passes in the window fails; its outcome is unknown unless every copy of it was
//!    refused. Its sequence may be missing at the broker now, so the slot is **broken**: nothing new is
//!    sent under this epoch. The batches behind it are still sent and resolve one way or the other.
//! 6. A batch refused for good (damaged, or too large and a single record) fails and breaks its slot likewise. One of
//!    several records that is too large is cut in two, which take its place and share its sequences in order: they
//!    were not used, and the batches behind it, refused for their sequence meanwhile, keep theirs. So in the end
//!    only a record that is too large by itself fails. A doubtful batch is not cut: a copy of it may have been written.
//! 7. When the first batch of the window is refused for its sequence, the window is given up: batches that are
//!    doubtful fail with their outcome unknown (a copy may still be on its way somewhere); the others were
//!    refused every time, go back to the pending queue and get new sequences later. The slot is broken.
//! 8. A broken slot whose window is empty takes a new epoch (`InitProducer` with the id and epoch in use) and starts
//!    at sequence 0. All other slots go over to the new epoch when their windows are empty; until then they
//!    go on under the old one. Batches of two epochs are never under way in one slot, so nothing overtakes.
//!
//! Every batch leaves by an answer or by its deadline, so no slot stays blocked for longer than the delivery timeout
//! after its broker is back; a batch whose outcome is unknown is never sent under another sequence, so nothing
//! is written twice.
//!
//! Without idempotence there are no sequences: rules 2 to 4 hold, a retry may write a batch twice, and a refused
//! batch may be overtaken by those already under way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};
use timberline_record::ProducerStamp;

use crate::backoff::Backoff;
use crate::error::{Error, Result, is_retriable};
use crate::producer::delivery::BatchAck;

/// Index of a partition.
pub(crate) type SlotId = u32;
/// Index of a stream's broker.
pub(crate) type RouteId = u32;

/// Identity under which sequences count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

/// A batch as the rules see it.
pub(crate) trait Payload {
    /// What goes over the wire; cheap to clone.
    type Wire;
    /// Records in it; each takes a sequence.
    fn records(&self) -> u32;
    /// Size for the stream's bound.
    fn bytes(&self) -> usize;
    /// Puts the stamp in; called again for a batch that gets another.
    fn seal(&mut self, stamp: Option<ProducerStamp>) -> Result<()>;
    /// The sealed bytes.
    fn wire(&self) -> Self::Wire;
    /// Cuts a sealed batch in two: this keeps the first half of the records and its stamp, the second half is returned,
    /// with the sequences that follow. `None`, and nothing is changed, if that can't be done.
    fn split(&mut self) -> Option<Self>
    where
        Self: Sized;
}

/// What the rules ask for.
#[derive(Debug)]
pub(crate) enum Action<B: Payload> {
    /// Put this on the stream.
    Send {
        route: RouteId,
        correlation_id: u64,
        wire: B::Wire,
    },
    /// The batch has its outcome.
    Complete { batch: B, outcome: Result<BatchAck> },
    /// Ask for a producer id, or for the next epoch of this one.
    InitProducer { bump: Option<Epoch> },
    /// Something is to be sent on this route and it is down.
    Connect { route: RouteId },
    /// The slot's leader is unknown or has moved.
    Locate { slot: SlotId },
}

/// The options that the rules need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) max_in_flight: usize,
    pub(crate) idempotent: bool,
    pub(crate) backoff: Backoff,
}

struct Queued<B> {
    batch: B,
    deadline: Instant,
    /// From the batch's beginning to its deadline.
    timeout: Duration,
}

enum Place {
    /// On this route, without an answer.
    Awaiting(RouteId),
    /// To be sent again: refused with this, or `None` when the stream was lost.
    Resend(Option<ApiError>),
}

struct InFlight<B> {
    queued: Queued<B>,
    correlation_id: u64,
    place: Place,
    /// A copy of it was sent and never answered, or answered in a way that leaves its outcome open.
    doubtful: bool,
}

struct Slot<B> {
    pending: VecDeque<Queued<B>>,
    window: VecDeque<InFlight<B>>,
    epoch: Option<Epoch>,
    next_sequence: i32,
    broken: bool,
    route: Option<RouteId>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// Said when a batch times out; empty if there was none.
    last_error: String,
}

struct Route {
    up: bool,
    unanswered_bytes: usize,
    max_bytes: usize,
    /// Slots that have something to send and found no room, in the order in which they came.
    throttled: Vec<SlotId>,
}

/// The state of one producer.
pub(crate) struct Core<B: Payload> {
    rules: Rules,
    slots: Vec<Slot<B>>,
    routes: Vec<Route>,
    epoch: Option<Epoch>,
    /// The id in use is of no use any more: ask for another one.
    new_id: bool,
    asking: bool,
    attempts: u32,
    batches: usize,
}

/// Sequences are 0 to 2³¹−1 and start over.
pub(crate) fn sequence_after(sequence: i32, records: u32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) % (1 << 31)) as i32
}

/// Whether the refusal is about the sequence and not about the batch.
fn is_about_sequence(error: &ApiError) -> bool {
    matches!(
        error.reason,
        Some(Reason::OutOfOrderSequence | Reason::UnknownProducer | Reason::ProducerFenced)
    )
}

/// Whether the refusal says for certain that this copy was not written and never will be. A leader that steps down,
/// say, may have handed the batch to its successor.
fn is_certain(error: &ApiError) -> bool {
    match error.reason {
        Some(Reason::Overloaded | Reason::StorageFull) => true,
        Some(reason) => !reason.is_retriable(),
        None => false,
    }
}

impl<B: Payload> Core<B> {
    pub(crate) fn new(rules: Rules) -> Core<B> {
        Core {
            rules,
            slots: Vec::new(),
            routes: Vec::new(),
            epoch: None,
            new_id: false,
            asking: false,
            attempts: 0,
            batches: 0,
        }
    }

    pub(crate) fn add_slot(&mut self) -> SlotId {
        self.slots.push(Slot {
            pending: VecDeque::new(),
            window: VecDeque::new(),
            epoch: None,
            next_sequence: 0,
            broken: false,
            route: None,
            retry_at: None,
            backoff: self.rules.backoff,
            last_error: String::new(),
        });
        (self.slots.len() - 1) as SlotId
    }

    pub(crate) fn add_route(&mut self) -> RouteId {
        self.routes.push(Route {
            up: false,
            unanswered_bytes: 0,
            max_bytes: 0,
            throttled: Vec::new(),
        });
        (self.routes.len() - 1) as RouteId
    }

    /// Batches that have no outcome yet.
    pub(crate) fn batch_count(&self) -> usize {
        self.batches
    }

    /// All batches that have no outcome yet.
    pub(crate) fn batches(&self) -> impl Iterator<Item = &B> {
        self.slots.iter().flat_map(|slot| {
            let window = slot.window.iter().map(|flying| &flying.queued.batch);
            window.chain(slot.pending.iter().map(|queued| &queued.batch))
        })
    }

    /// Whether a batch that is not full should be closed now: it would be next.
    pub(crate) fn wants(&self, slot: SlotId) -> bool {
        let slot = &self.slots[slot as usize];
        slot.pending.is_empty() && slot.window.len() < self.rules.max_in_flight
    }

    /// Whether the route has batches without an answer.
    pub(crate) fn is_waiting(&self, route: RouteId) -> bool {
        self.routes[route as usize].unanswered_bytes > 0
    }

    /// When the slot must be looked at again without an event.
    pub(crate) fn wake_at(&self, slot: SlotId, now: Instant) -> Option<Instant> {
        let slot = &self.slots[slot as usize];
        let window = slot.window.iter().map(|flying| flying.queued.deadline);
        let pending = slot.pending.iter().map(|queued| queued.deadline);
        let deadline = window.chain(pending).min()?;
        let retry = slot.retry_at.filter(|&at| at > now);
        Some(retry.map_or(deadline, |retry| retry.min(deadline)))
    }

    // Events. After each, `service` is due for the slots concerned.

    /// A batch is closed. It was begun at `begun`, and must be acknowledged within `timeout` from then on.
    pub(crate) fn enqueue(&mut self, slot: SlotId, batch: B, begun: Instant, timeout: Duration) {
        self.batches += 1;
        let queued = Queued {
            batch,
            deadline: begun + timeout,
            timeout,
        };
        self.slots[slot as usize].pending.push_back(queued);
    }

    /// The slot's leader is reached by this route, or is unknown.
    pub(crate) fn set_route(&mut self, slot: SlotId, route: Option<RouteId>) {
        self.slots[slot as usize].route = route;
    }

    pub(crate) fn route_of(&self, slot: SlotId) -> Option<RouteId> {
        self.slots[slot as usize].route
    }

    /// What was refused may be sent again at once: its leader is known now.
    pub(crate) fn hurry(&mut self, slot: SlotId) {
        self.slots[slot as usize].retry_at = None;
    }

    /// Whether something of the slot can't be sent, because its leader is unknown or not reached.
    pub(crate) fn is_stranded(&self, slot: SlotId) -> bool {
        let slot = &self.slots[slot as usize];
        let reached = slot
            .route
            .is_some_and(|route| self.routes[route as usize].up);
        let waits = !slot.window.is_empty() || !slot.pending.is_empty();
        waits && !reached
    }

    /// Whether batches may be sent on the route.
    pub(crate) fn is_up(&self, route: RouteId) -> bool {
        self.routes[route as usize].up
    }

    /// The broker says that the slot moved: what has no answer there may never get one.
    pub(crate) fn moved(&mut self, slot: SlotId, from: RouteId) {
        lose(
            &mut self.slots[slot as usize],
            &mut self.routes[from as usize],
            from,
        );
    }

    /// The stream is ready. All slots are concerned.
    pub(crate) fn route_up(&mut self, route: RouteId, max_bytes: usize) {
        let route = &mut self.routes[route as usize];
        route.up = true;
        route.max_bytes = max_bytes;
    }

    /// Slots to be served now that the route may have room again; to be called after answers came on it.
    pub(crate) fn take_throttled(&mut self, route: RouteId) -> Vec<SlotId> {
        std::mem::take(&mut self.routes[route as usize].throttled)
    }

    /// Nothing more may be sent, answers still come.
    pub(crate) fn route_draining(&mut self, route: RouteId) {
        self.routes[route as usize].up = false;
    }

    /// The stream is gone, and with it all answers. All slots are concerned.
    pub(crate) fn route_down(&mut self, route: RouteId, error: &str) {
        self.routes[route as usize].up = false;
        for slot in &mut self.slots {
            if lose(slot, &mut self.routes[route as usize], route) {
                slot.last_error.clear();
                slot.last_error.push_str(error);
            }
        }
        self.routes[route as usize].unanswered_bytes = 0;
    }

    /// `InitProducer` has an answer. All slots are concerned.
    pub(crate) fn epoch_granted(&mut self, epoch: Epoch) {
        self.asking = false;
        self.new_id = false;
        self.epoch = Some(epoch);
    }

    /// `InitProducer` was refused. With `new_id`, the id in use is given up; with `fatal`, what waits fails with it.
    pub(crate) fn epoch_refused(
        &mut self,
        new_id: bool,
        fatal: Option<&Error>,
        out: &mut Vec<Action<B>>,
    ) {
        self.asking = false;
        self.new_id |= new_id;
        let Some(error) = fatal else { return };
        for slot in 0..self.slots.len() {
            self.fail_pending(slot as SlotId, error, out);
        }
    }

    /// What waits in the slot without a sequence fails with this, e.g. because the topic is gone.
    pub(crate) fn fail_pending(&mut self, slot: SlotId, error: &Error, out: &mut Vec<Action<B>>) {
        while let Some(queued) = self.slots[slot as usize].pending.pop_front() {
            self.complete(queued.batch, Err(error.clone()), out);
        }
    }

    /// A batch is answered. Returns its slot; `None` when the answer is for a copy that no longer counts.
    pub(crate) fn answered(
        &mut self,
        correlation_id: u64,
        answer: Result<BatchAck, ApiError>,
        now: Instant,
        out: &mut Vec<Action<B>>,
    ) -> Option<SlotId> {
        let id = (correlation_id >> 32) as SlotId;
        let slot = self.slots.get_mut(id as usize)?;
        let at = slot.window.iter().position(|flying| {
            flying.correlation_id == correlation_id && matches!(flying.place, Place::Awaiting(_))
        })?;
        if let Place::Awaiting(route) = slot.window[at].place {
            let route = &mut self.routes[route as usize];
            route.unanswered_bytes -= slot.window[at].queued.batch.bytes();
        }
        let error = match answer {
            Ok(ack) => {
                slot.backoff.reset();
                let flying = slot.window.remove(at)?;
                self.complete(flying.queued.batch, Ok(ack), out);
                return Some(id);
            }
            Err(error) => error,
        };
        let sequence = self.rules.idempotent && is_about_sequence(&error);
        if error.reason == Some(Reason::RecordTooLarge) && slot.cut(at, &error) {
            self.batches += 1;
            return Some(id);
        }
        if !sequence && !is_retriable(&error) {
            let flying = slot.window.remove(at)?;
            // Its sequence may be missing from now on (rule 6); one known as written is not.
            slot.broken |= self.rules.idempotent && error.reason != Some(Reason::DuplicateSequence);
            let gone = matches!(
                error.reason,
                Some(Reason::UnknownTopic | Reason::UnknownPartition | Reason::DuplicateSequence)
            );
            let error = match flying.doubtful && !gone {
                true => Error::OutcomeUnknown {
                    message: format!("an unanswered batch was then refused ({error})"),
                },
                false => error.into(),
            };
            self.complete(flying.queued.batch, Err(error), out);
            return Some(id);
        }
        slot.last_error = error.to_string();
        if !sequence {
            let pause = slot
                .backoff
                .next_exact()
                .max(error.retry_after.unwrap_or_default());
            slot.retry_at = Some(now + pause);
            if matches!(
                error.reason,
                Some(Reason::NotLeader | Reason::NoLeader | Reason::Draining)
            ) {
                out.push(Action::Locate { slot: id });
            }
        }
        slot.window[at].doubtful |= !is_certain(&error);
        slot.window[at].place = Place::Resend(Some(error));
        Some(id)
    }

    /// Does all that is due for one slot.
    pub(crate) fn service(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action<B>>) {
        self.expire(slot, now, out);
        self.settle(slot, now, out);
        self.renew_epoch(slot, out);
        self.send(slot, now, out);
    }

    /// Rules 4 and 5.
    fn expire(&mut self, id: SlotId, now: Instant, out: &mut Vec<Action<B>>) {
        let slot = &mut self.slots[id as usize];
        let mut expired = Vec::new();
        // Each has a timeout of its own: those behind may be due before those in front.
        let late = |flying: &InFlight<B>| flying.queued.deadline <= now;
        while let Some(at) = slot.window.iter().position(late) {
            let Some(flying) = slot.window.remove(at) else {
                break;
            };
            if let Place::Awaiting(route) = flying.place {
                self.routes[route as usize].unanswered_bytes -= flying.queued.batch.bytes();
            }
            let refused = matches!(flying.place, Place::Resend(Some(_)));
            slot.broken = self.rules.idempotent;
            expired.push((flying.queued, flying.doubtful || !refused));
        }
        let late = |queued: &Queued<B>| queued.deadline <= now;
        while let Some(at) = slot.pending.iter().position(late) {
            let Some(queued) = slot.pending.remove(at) else {
                break;
            };
            expired.push((queued, false));
        }
        let mut last = slot.last_error.clone();
        if last.is_empty() && !expired.is_empty() {
            let reached = slot.route.map(|route| self.routes[route as usize].up);
            last = match (reached, self.rules.idempotent && slot.epoch.is_none()) {
                (None, _) => "no leader of the partition is known",
                (Some(false), _) => "there is no connection to the partition's leader",
                (Some(true), true) => "no broker gave out a producer id",
                (Some(true), false) => "the partition's leader has not answered",
            }
            .to_owned();
        }
        for (queued, outcome_unknown) in expired {
            let error = Error::DeliveryTimeout {
                outcome_unknown,
                after: queued.timeout,
                last: last.clone(),
            };
            self.complete(queued.batch, Err(error), out);
        }
    }

    /// Rule 7.
    fn settle(&mut self, id: SlotId, now: Instant, out: &mut Vec<Action<B>>) {
        let slot = &mut self.slots[id as usize];
        let Some(Place::Resend(Some(error))) = slot.window.front().map(|flying| &flying.place)
        else {
            return;
        };
        let awaiting = slot
            .window
            .iter()
            .any(|flying| matches!(flying.place, Place::Awaiting(_)));
        if awaiting || !self.rules.idempotent || !is_about_sequence(error) {
            return;
        }
        if error.reason != Some(Reason::OutOfOrderSequence) && slot.epoch == self.epoch {
            self.new_id = true;
        }
        let message = error.to_string();
        slot.broken = true;
        slot.retry_at = Some(now + slot.backoff.next_exact());
        let mut failed = Vec::new();
        while let Some(flying) = slot.window.pop_back() {
            if flying.doubtful {
                failed.push(flying.queued.batch);
            } else {
                slot.pending.push_front(flying.queued);
            }
        }
        for batch in failed.into_iter().rev() {
            let message =
                format!("an unanswered batch was then refused for its sequence ({message})");
            self.complete(batch, Err(Error::OutcomeUnknown { message }), out);
        }
    }

    /// Rule 8.
    fn renew_epoch(&mut self, id: SlotId, out: &mut Vec<Action<B>>) {
        let slot = &mut self.slots[id as usize];
        if !self.rules.idempotent || !slot.window.is_empty() || slot.pending.is_empty() {
            return;
        }
        if self.epoch.is_some() && slot.epoch != self.epoch {
            slot.epoch = self.epoch;
            slot.next_sequence = 0;
            slot.broken = false;
        } else if (slot.broken || self.epoch.is_none()) && !self.asking {
            self.asking = true;
            let bump = self.epoch.filter(|_| !self.new_id);
            out.push(Action::InitProducer { bump });
        }
    }

    /// Rules 1 to 3.
    fn send(&mut self, id: SlotId, now: Instant, out: &mut Vec<Action<B>>) {
        let slot = &mut self.slots[id as usize];
        let resend = slot
            .window
            .iter()
            .any(|flying| matches!(flying.place, Place::Resend(_)));
        let awaiting = slot
            .window
            .iter()
            .any(|flying| matches!(flying.place, Place::Awaiting(_)));
        let nothing = slot.pending.is_empty() && !resend;
        if nothing || (resend && awaiting) || slot.retry_at.is_some_and(|at| at > now) {
            return;
        }
        slot.retry_at = None;
        let Some(route) = slot.route else {
            out.push(Action::Locate { slot: id });
            return;
        };
        let state = &mut self.routes[route as usize];
        if !state.up {
            out.push(Action::Connect { route });
            return;
        }
        let attempt = |attempts: &mut u32| {
            *attempts = attempts.wrapping_add(1);
            u64::from(id) << 32 | u64::from(*attempts)
        };
        if resend {
            // Cut batches make the window longer: those behind have their turn when these are answered.
            for flying in slot.window.iter_mut().take(self.rules.max_in_flight) {
                flying.correlation_id = attempt(&mut self.attempts);
                flying.place = Place::Awaiting(route);
                state.unanswered_bytes += flying.queued.batch.bytes();
                out.push(Action::Send {
                    route,
                    correlation_id: flying.correlation_id,
                    wire: flying.queued.batch.wire(),
                });
            }
        }
        let elsewhere =
            |flying: &InFlight<B>| !matches!(flying.place, Place::Awaiting(at) if at == route);
        if slot.window.iter().any(elsewhere) || slot.broken {
            return;
        }
        if self.rules.idempotent && (self.epoch.is_none() || slot.epoch != self.epoch) {
            return;
        }
        while slot.window.len() < self.rules.max_in_flight {
            let Some(next) = slot.pending.front() else {
                return;
            };
            let bytes = next.batch.bytes();
            if state.unanswered_bytes > 0 && state.unanswered_bytes + bytes > state.max_bytes {
                if !state.throttled.contains(&id) {
                    state.throttled.push(id);
                }
                return;
            }
            let Some(mut queued) = slot.pending.pop_front() else {
                return;
            };
            let stamp = slot
                .epoch
                .filter(|_| self.rules.idempotent)
                .map(|epoch| ProducerStamp {
                    id: epoch.producer_id,
                    epoch: epoch.epoch,
                    base_sequence: slot.next_sequence,
                });
            if let Err(error) = queued.batch.seal(stamp) {
                self.batches -= 1;
                out.push(Action::Complete {
                    batch: queued.batch,
                    outcome: Err(error),
                });
                continue;
            }
            slot.next_sequence = sequence_after(slot.next_sequence, queued.batch.records());
            let correlation_id = attempt(&mut self.attempts);
            state.unanswered_bytes += queued.batch.bytes();
            out.push(Action::Send {
                route,
                correlation_id,
                wire: queued.batch.wire(),
            });
            slot.window.push_back(InFlight {
                queued,
                correlation_id,
                place: Place::Awaiting(route),
                doubtful: false,
            });
        }
    }

    fn complete(&mut self, batch: B, outcome: Result<BatchAck>, out: &mut Vec<Action<B>>) {
        self.batches -= 1;
        out.push(Action::Complete { batch, outcome });
    }
}

impl<B: Payload> Slot<B> {
    /// Rule 6: cuts a batch that was refused as too large, if it can be.
    fn cut(&mut self, at: usize, error: &ApiError) -> bool {
        let flying = &mut self.window[at];
        if flying.doubtful {
            return false;
        }
        let Some(second) = flying.queued.batch.split() else {
            return false;
        };
        flying.place = Place::Resend(Some(error.clone()));
        let second = InFlight {
            queued: Queued {
                batch: second,
                deadline: flying.queued.deadline,
                timeout: flying.queued.timeout,
            },
            correlation_id: flying.correlation_id,
            place: Place::Resend(Some(error.clone())),
            doubtful: false,
        };
        self.window.insert(at + 1, second);
        self.last_error = error.to_string();
        true
    }
}

/// Rule 2: what has no answer on the route never gets one. Whether there was any.
fn lose<B: Payload>(slot: &mut Slot<B>, route: &mut Route, id: RouteId) -> bool {
    let mut lost = false;
    for flying in &mut slot.window {
        if matches!(flying.place, Place::Awaiting(at) if at == id) {
            route.unanswered_bytes -= flying.queued.batch.bytes();
            flying.place = Place::Resend(None);
            flying.doubtful = true;
            lost = true;
        }
    }
    lost
}
