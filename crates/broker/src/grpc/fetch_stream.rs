//! One fetch stream: assignments in, batches out, as far as the client's credit goes.
//!
//! The stream is polled when the peer can take data, and whenever an assigned partition moves, a cold read ends or a
//! request arrives; otherwise it costs nothing. Assignments are served in turn, a message each. Batches are slices of the
//! mapped segments.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    FetchAssign, FetchData, FetchFailure, FetchGoAway, FetchHello, FetchHelloAck, FetchProgress,
    FetchRemove, FetchRequest, FetchResponse, fetch_request, fetch_response,
};
use timberline_storage::{ColdRead, Cursor, Error as StorageError, ReadOutcome};
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::convert;
use super::produce_stream::{check_version, inbound_error, our_hello};
use crate::auth::Operation;
use crate::core::Core;
use crate::errors;
use crate::lifecycle::{Active, Phase};
use crate::metadata::table::id_bytes;
use crate::partition::{Partition, Signal};

/// Requests taken in one go before data is sent again.
const REQUESTS_PER_POLL: usize = 64;
/// Largest message that a client may ask for.
const MESSAGE_BYTES_MAX: i64 = 64 << 20;
/// Cold reads that one stream has under way.
const COLD_READS_MAX: usize = 4;
/// Looks in one go that have to be repeated at once, before other streams of the thread get their turn.
const AGAIN_PER_POLL: usize = 64;
/// Empty reads below the high watermark, one after the other, until the assignment fails. The log start may move while a
/// read is under way, and the next read says so; what is still missing then is missing for good.
const EMPTY_READS_MAX: u8 = 3;

/// Names an assignment within the stream; never used again, so that a late wake can't mean its successor.
type Key = u64;

struct Assigned {
    topic_id: Bytes,
    partition: Arc<Partition>,
    id: u64,
    cursor: Cursor,
    /// It is registered with the partition and has not been rung.
    waiting: bool,
    /// High watermark and log start as the client was told last.
    told: Option<(i64, i64)>,
    /// Reads since the last data that found nothing though there must be something.
    empty_reads: u8,
}

enum Turn {
    /// A message, and the assignment goes to the end of the line.
    Data(FetchResponse),
    /// Caught up; a message if the client does not know yet.
    Waiting(Option<FetchResponse>),
    Cold(ColdRead),
    /// There is something, but no credit.
    Parked,
    /// Moved on while it was looked at.
    Again,
    Failed(ApiError),
}

type ColdDone = (Key, Result<(), StorageError>);
type ColdFuture = Pin<Box<dyn Future<Output = ColdDone> + Send>>;

/// The responses of a stream; see the module.
pub(super) struct FetchStream {
    core: Arc<Core>,
    inbound: Streaming<FetchRequest>,
    greeted: bool,
    ended: Option<Option<Box<Status>>>,
    credit: i64,
    message_bytes: i64,
    next_key: Key,
    assigned: HashMap<Key, Assigned>,
    by_partition: HashMap<(Uuid, i32), Key>,
    /// Assignments that may have something, each at most once.
    line: VecDeque<Key>,
    /// Assignments that have something and wait for credit.
    parked: Vec<Key>,
    /// Assignments whose cold read waits for one under way to end.
    cold_line: VecDeque<(Key, ColdRead)>,
    cold: FuturesUnordered<ColdFuture>,
    signal: Arc<Signal>,
    moved: Vec<Key>,
    /// Bounded: one for each request taken.
    ready: VecDeque<FetchResponse>,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    drained: bool,
    _active: Active,
}

fn respond(kind: fetch_response::Kind) -> FetchResponse {
    FetchResponse { kind: Some(kind) }
}

impl FetchStream {
    pub(super) fn new(core: Arc<Core>, inbound: Streaming<FetchRequest>, active: Active) -> Self {
        FetchStream {
            draining: Box::pin(core.lifecycle.reached(Phase::Draining)),
            message_bytes: core.config.limits.fetch_message_bytes.0 as i64,
            core,
            inbound,
            greeted: false,
            ended: None,
            credit: 0,
            next_key: 0,
            assigned: HashMap::new(),
            by_partition: HashMap::new(),
            line: VecDeque::new(),
            parked: Vec::new(),
            cold_line: VecDeque::new(),
            cold: FuturesUnordered::new(),
            signal: Signal::new(),
            moved: Vec::new(),
            ready: VecDeque::new(),
            drained: false,
            _active: active,
        }
    }

    fn end(&mut self, status: Option<Status>) {
        self.ended = Some(status.map(Box::new));
        self.assigned.clear();
        self.line.clear();
        self.parked.clear();
        self.cold_line.clear();
    }

    fn receive(&mut self, request: FetchRequest) {
        use fetch_request::Kind;
        match (self.greeted, request.kind) {
            (false, Some(Kind::Hello(hello))) => self.greet(&hello),
            (true, Some(Kind::Assign(assign))) => self.assign(assign),
            (true, Some(Kind::Remove(remove))) => self.remove(&remove),
            (true, Some(Kind::GrantBytes(bytes))) if bytes >= 0 => {
                self.credit = self.credit.saturating_add(bytes);
                if self.credit > 0 {
                    self.line.extend(self.parked.drain(..));
                }
            }
            (true, Some(Kind::GrantBytes(_))) => {
                let error = ApiError::invalid("grant_bytes", "a grant is not negative");
                self.end(Some(error.to_status()));
            }
            (true, None) => {
                let error = ApiError::invalid("kind", "a message of a kind unknown to this broker");
                self.end(Some(error.to_status()));
            }
            (true, Some(Kind::Hello(_))) => {
                let error =
                    ApiError::new(Reason::HandshakeRequired, "a second hello on one stream");
                self.end(Some(error.to_status()));
            }
            (false, _) => {
                let error = ApiError::new(
                    Reason::HandshakeRequired,
                    "the stream's first message must be a hello",
                );
                self.end(Some(error.to_status()));
            }
        }
    }

    /// Both isolations read the same until there are transactions: nothing uncommitted is ever readable.
    fn greet(&mut self, hello: &FetchHello) {
        if let Err(error) = check_version(hello.hello.as_ref().unwrap_or(&Default::default())) {
            return self.end(Some(error.to_status()));
        }
        if hello.max_response_bytes > 0 {
            self.message_bytes = hello.max_response_bytes.min(MESSAGE_BYTES_MAX);
        }
        self.greeted = true;
        self.ready
            .push_back(respond(fetch_response::Kind::Hello(FetchHelloAck {
                hello: Some(our_hello(&self.core)),
                max_response_bytes: self.message_bytes,
            })));
    }

    fn assign(&mut self, assign: FetchAssign) {
        match self.try_assign(&assign) {
            Ok(()) => {}
            Err(error) => {
                self.ready
                    .push_back(respond(fetch_response::Kind::Failure(FetchFailure {
                        topic_id: assign.topic_id,
                        partition: assign.partition,
                        assignment_id: assign.assignment_id,
                        error: Some(error.to_item()),
                    })))
            }
        }
    }

    fn try_assign(&mut self, assign: &FetchAssign) -> Result<(), ApiError> {
        let topic = self.core.topic_by_id(Operation::Read, &assign.topic_id)?;
        let partition = self.core.readable(&topic, assign.partition)?;
        if assign.offset < 0 {
            return Err(ApiError::invalid("offset", "an offset is not negative"));
        }
        let place = (topic.id, assign.partition);
        if let Some(old) = self.by_partition.remove(&place) {
            self.forget(old);
        }
        let max = self.core.config.limits.fetch_assignments_max;
        if self.assigned.len() >= max {
            return Err(ApiError::new(
                Reason::Overloaded,
                format!("a stream has at most {max} assignments"),
            ));
        }
        let key = self.next_key;
        self.next_key += 1;
        let cursor = partition.log.cursor(assign.offset);
        self.by_partition.insert(place, key);
        self.assigned.insert(
            key,
            Assigned {
                topic_id: id_bytes(topic.id),
                partition,
                id: assign.assignment_id,
                cursor,
                waiting: false,
                told: None,
                empty_reads: 0,
            },
        );
        self.line.push_back(key);
        Ok(())
    }

    fn remove(&mut self, remove: &FetchRemove) {
        let topic = crate::metadata::table::topic_id(&remove.topic_id);
        let key = topic.and_then(|topic| self.by_partition.remove(&(topic, remove.partition)));
        if let Some(key) = key {
            self.forget(key);
        }
    }

    /// Drops an assignment. Keys of it may still stand in line; they then mean nothing. They are swept out when they
    /// are most of it.
    fn forget(&mut self, key: Key) {
        if let Some(old) = self.assigned.remove(&key) {
            old.stop_waiting(&self.signal, key);
        }
        self.parked.retain(|other| *other != key);
        self.cold_line.retain(|(other, _)| *other != key);
        if self.line.len() > 2 * self.assigned.len() + 64 {
            self.line.retain(|key| self.assigned.contains_key(key));
        }
    }

    fn fail(&mut self, key: Key, error: &ApiError) -> Option<FetchResponse> {
        let failed = self.assigned.remove(&key)?;
        failed.stop_waiting(&self.signal, key);
        self.by_partition
            .remove(&(failed.partition.topic, failed.partition.number));
        Some(respond(fetch_response::Kind::Failure(FetchFailure {
            topic_id: failed.topic_id,
            partition: failed.partition.number,
            assignment_id: failed.id,
            error: Some(error.to_item()),
        })))
    }

    /// Serves assignments in turn until there is a message; `None` when nobody has anything now.
    fn serve(&mut self, context: &mut Context<'_>) -> Option<FetchResponse> {
        let mut again = 0;
        loop {
            if again == AGAIN_PER_POLL {
                context.waker().wake_by_ref();
                return None;
            }
            let key = self.line.pop_front()?;
            let max_bytes = self.credit.clamp(0, self.message_bytes) as usize;
            let Some(assigned) = self.assigned.get_mut(&key) else {
                continue;
            };
            match assigned.turn(&self.signal, key, max_bytes, &mut self.credit, &self.core) {
                Turn::Data(response) => {
                    self.line.push_back(key);
                    return Some(response);
                }
                Turn::Waiting(Some(response)) => return Some(response),
                Turn::Waiting(None) => {}
                Turn::Again => {
                    again += 1;
                    self.line.push_back(key);
                }
                Turn::Parked => self.parked.push(key),
                Turn::Cold(read) => self.start_cold(key, read),
                Turn::Failed(error) => {
                    if let Some(response) = self.fail(key, &error) {
                        return Some(response);
                    }
                }
            }
        }
    }

    fn start_cold(&mut self, key: Key, read: ColdRead) {
        if self.cold.len() >= COLD_READS_MAX {
            return self.cold_line.push_back((key, read));
        }
        let work = tokio::task::spawn_blocking(move || read.run());
        self.cold.push(Box::pin(async move {
            // A thread that is gone: only while the runtime stops, and then nobody reads.
            (key, work.await.unwrap_or(Ok(())))
        }));
    }

    /// Takes the results of cold reads; true if any ended.
    fn poll_cold(&mut self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some((key, result))) = self.cold.poll_next_unpin(context) {
            any = true;
            match result {
                Ok(()) => self.line.push_back(key),
                Err(error) => {
                    let response = self.fail(key, &errors::from_storage(&error));
                    self.ready.extend(response);
                }
            }
            if let Some((key, read)) = self.cold_line.pop_front() {
                self.start_cold(key, read);
            }
        }
        any
    }
}

impl Assigned {
    /// One look at the partition: data, or a registration for when there is some.
    fn turn(
        &mut self,
        signal: &Arc<Signal>,
        key: Key,
        max_bytes: usize,
        credit: &mut i64,
        core: &Core,
    ) -> Turn {
        let partition = Arc::clone(&self.partition);
        if let Err(error) = core.check_readable(&partition) {
            return Turn::Failed(error);
        }
        let log = &partition.log;
        let offset = self.cursor.offset();
        // A leader that has committed nothing yet does not know where the end is.
        let lead = partition.lead();
        if offset > log.end_offset() && (lead.settled || !lead.here) {
            return Turn::Failed(errors::out_of_range(offset, log));
        }
        // At the high watermark, or above it but not behind the end: it will be there.
        if offset >= log.high_watermark() {
            return self.wait(signal, key);
        }
        if max_bytes == 0 {
            return Turn::Parked;
        }
        match log.read(&mut self.cursor, max_bytes) {
            Ok(ReadOutcome::Batches(batches)) if batches.is_empty() => self.found_nothing(),
            Ok(ReadOutcome::Batches(batches)) => {
                self.empty_reads = 0;
                let bytes: usize = batches.iter().map(Bytes::len).sum();
                let records = batches
                    .iter()
                    .map(|batch| convert::record_count(batch))
                    .sum();
                *credit -= bytes as i64;
                core.metrics.sent(records, bytes as u64);
                Turn::Data(self.data(batches))
            }
            Ok(ReadOutcome::Cold(read)) => Turn::Cold(read),
            Err(error) => Turn::Failed(errors::from_storage(&error)),
        }
    }

    /// Nothing was read below the high watermark: looks again a few times, from a fresh position, then gives up.
    fn found_nothing(&mut self) -> Turn {
        self.empty_reads += 1;
        let offset = self.cursor.offset();
        let log = &self.partition.log;
        if self.empty_reads < EMPTY_READS_MAX {
            self.cursor = log.cursor(offset);
            return Turn::Again;
        }
        // A deleted topic's log is empty.
        if let Err(error) = self.partition.check_open() {
            return Turn::Failed(error);
        }
        let high_watermark = log.high_watermark();
        tracing::error!(replica = %self.partition.replica, offset, high_watermark,
            "nothing is found below the high watermark");
        Turn::Failed(
            ApiError::new(
                Reason::Internal,
                format!("offset {offset} is below the high watermark {high_watermark}, but nothing is found there"),
            )
            .with("offset", offset)
            .with("high_watermark", high_watermark),
        )
    }

    fn stop_waiting(&self, signal: &Arc<Signal>, key: Key) {
        if self.waiting {
            self.partition.waiters().forget(signal, key);
        }
    }

    fn data(&mut self, batches: Vec<Bytes>) -> FetchResponse {
        let log = &self.partition.log;
        let (high_watermark, log_start) = (log.high_watermark(), log.log_start());
        respond(fetch_response::Kind::Data(FetchData {
            topic_id: self.topic_id.clone(),
            partition: self.partition.number,
            assignment_id: self.id,
            batches,
            high_watermark,
            log_start_offset: log_start,
            leader_epoch: self.partition.leader_epoch(),
        }))
    }

    /// Registers, then looks again: what moved in between would ring nowhere.
    fn wait(&mut self, signal: &Arc<Signal>, key: Key) -> Turn {
        let partition = &self.partition;
        if !self.waiting {
            partition.waiters().register(signal, key);
            self.waiting = true;
        }
        let log = &partition.log;
        let now = (log.high_watermark(), log.log_start());
        if now.0 > self.cursor.offset() {
            // It stays in line, so the bell must not put it there a second time.
            self.stop_waiting(signal, key);
            self.waiting = false;
            return Turn::Again;
        }
        if self.told == Some(now) || self.cursor.offset() > now.0 {
            return Turn::Waiting(None);
        }
        self.told = Some(now);
        Turn::Waiting(Some(respond(fetch_response::Kind::Progress(
            FetchProgress {
                topic_id: self.topic_id.clone(),
                partition: partition.number,
                assignment_id: self.id,
                high_watermark: now.0,
                log_start_offset: now.1,
            },
        ))))
    }
}

impl Stream for FetchStream {
    type Item = Result<FetchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut taken = 0;
        loop {
            if let Some(response) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            if let Some(status) = &mut this.ended {
                return Poll::Ready(status.take().map(|status| Err(*status)));
            }
            if !this.drained && this.draining.as_mut().poll(context).is_ready() {
                this.drained = true;
                this.end(None);
                let reason = "this broker is shutting down".to_owned();
                this.ready
                    .push_back(respond(fetch_response::Kind::GoAway(FetchGoAway {
                        reason,
                    })));
                continue;
            }
            let mut idle = true;
            if taken < REQUESTS_PER_POLL {
                match Pin::new(&mut this.inbound).poll_next(context) {
                    Poll::Ready(Some(Ok(request))) => {
                        taken += 1;
                        this.receive(request);
                        continue;
                    }
                    Poll::Ready(Some(Err(status))) => {
                        this.end(Some(inbound_error(status)));
                        continue;
                    }
                    Poll::Ready(None) => {
                        this.end(None);
                        continue;
                    }
                    Poll::Pending => {}
                }
            } else {
                idle = false;
            }
            if this.signal.poll(context, &mut this.moved).is_ready() {
                for key in this.moved.drain(..) {
                    // A late bell of a registration that was taken back means nothing.
                    let waiting = this
                        .assigned
                        .get_mut(&key)
                        .filter(|assigned| assigned.waiting);
                    if let Some(assigned) = waiting {
                        assigned.waiting = false;
                        this.line.push_back(key);
                    }
                }
            }
            if this.poll_cold(context) {
                continue;
            }
            if let Some(response) = this.serve(context) {
                return Poll::Ready(Some(Ok(response)));
            }
            if !this.cold.is_empty() && this.poll_cold(context) {
                continue;
            }
            if !idle {
                // More requests may be there than one go takes.
                context.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }
}
