//! One produce stream: batches in, answers out, in one task and without a channel between.
//!
//! Polling the answers is what reads the batches: as long as the peer does not take its answers, or has as much in
//! flight as it may, nothing more is read, and HTTP/2's window holds it back. A batch is parsed and checked here, on a
//! network thread, so that shards only ever see good ones.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    GoAway, Hello, ProduceAck, ProduceBatch, ProduceFailure, ProduceHello, ProduceRequest,
    ProduceResponse, produce_request, produce_response,
};
use timberline_record::{Batch, TimestampType};
use tonic::{Code, Status, Streaming};

use super::PROTOCOL_VERSION;
use crate::ack::{AckSink, Answer, Ticket};
use crate::auth::Operation;
use crate::core::Core;
use crate::errors;
use crate::lifecycle::{Active, Phase};
use crate::metadata::table::id_bytes;
use crate::partition::Permit;
use crate::shard::Work;
use crate::topic::config::TopicConfig;

/// Batches of one partition that a client should have under way: what a restarted broker can still tell from duplicates.
const IN_FLIGHT_PER_PARTITION: i32 = 5;
/// Messages taken in one go before other streams of the thread get their turn.
const MESSAGES_PER_POLL: usize = 32;

enum State {
    /// Nothing but a hello is understood.
    Handshake,
    Open,
    /// Nothing more is read; pending answers go out, then the stream ends so.
    Ending(Option<Box<Status>>),
    Ended,
}

/// The answers of a stream; see the module.
pub(super) struct ProduceStream {
    core: Arc<Core>,
    inbound: Streaming<ProduceRequest>,
    sink: Arc<AckSink>,
    state: State,
    /// Bounded: refusals by `MESSAGES_PER_POLL`, answers by what is in flight.
    ready: VecDeque<ProduceResponse>,
    answers: Vec<Answer>,
    in_flight: usize,
    in_flight_bytes: u64,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    drained: bool,
    _active: Active,
}

impl ProduceStream {
    pub(super) fn new(core: Arc<Core>, inbound: Streaming<ProduceRequest>, active: Active) -> Self {
        ProduceStream {
            draining: Box::pin(core.lifecycle.reached(Phase::Draining)),
            core,
            inbound,
            sink: Arc::new(AckSink::default()),
            state: State::Handshake,
            ready: VecDeque::new(),
            answers: Vec::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            drained: false,
            _active: active,
        }
    }

    fn may_read(&self) -> bool {
        let limits = &self.core.config.limits;
        self.in_flight < limits.stream_in_flight_batches
            && self.in_flight_bytes < limits.stream_in_flight_bytes.0
    }

    /// Turns what the shards answered into messages.
    fn collect_answers(&mut self, context: &mut Context<'_>) -> bool {
        if self.sink.poll(context, &mut self.answers).is_pending() {
            return false;
        }
        for answer in self.answers.drain(..) {
            self.in_flight -= 1;
            self.in_flight_bytes -= answer.bytes;
            self.ready.push_back(message(answer));
        }
        true
    }

    fn end(&mut self, status: Option<Status>) {
        self.state = State::Ending(status.map(Box::new));
    }

    fn receive(&mut self, request: ProduceRequest) {
        use produce_request::Kind;
        match (&self.state, request.kind) {
            (State::Handshake, Some(Kind::Hello(hello))) => self.greet(&hello),
            (State::Open, Some(Kind::Batch(batch))) => self.batch(batch),
            (State::Open, None) => {
                let error = ApiError::invalid("kind", "a message of a kind unknown to this broker");
                self.end(Some(error.to_status()));
            }
            (State::Open, Some(Kind::Hello(_))) => {
                let error =
                    ApiError::new(Reason::HandshakeRequired, "a second hello on one stream");
                self.end(Some(error.to_status()));
            }
            (_, _) => {
                let error = ApiError::new(
                    Reason::HandshakeRequired,
                    "the stream's first message must be a hello",
                );
                self.end(Some(error.to_status()));
            }
        }
    }

    fn greet(&mut self, hello: &Hello) {
        if let Err(error) = check_version(hello) {
            return self.end(Some(error.to_status()));
        }
        let limits = &self.core.config.limits;
        self.state = State::Open;
        self.ready
            .push_back(respond(produce_response::Kind::Hello(ProduceHello {
                hello: Some(our_hello(&self.core)),
                max_batch_bytes: limits.message_bytes_max.0 as i64,
                max_in_flight_per_partition: IN_FLIGHT_PER_PARTITION,
                max_in_flight_bytes: limits.stream_in_flight_bytes.0 as i64,
            })));
    }

    fn batch(&mut self, message: ProduceBatch) {
        let bytes = message.batch.len() as u64;
        self.core.metrics.request_bytes.inc_by(bytes);
        match self.admit(&message) {
            Ok((batch, permit, log_append_time)) => {
                self.in_flight += 1;
                self.in_flight_bytes += bytes;
                let records = u64::from(batch.header().record_count.unsigned_abs());
                let replica = permit.partition().replica;
                let ticket =
                    Ticket::for_stream(&self.sink, message.correlation_id, permit, bytes, records);
                self.core.shards.submit(
                    replica,
                    Work::Batch {
                        batch,
                        log_append_time,
                        ticket,
                    },
                );
            }
            Err(error) => {
                self.core
                    .metrics
                    .committed(error.code, std::time::Duration::ZERO);
                tracing::debug!(%error, "batch refused");
                self.ready
                    .push_back(respond(produce_response::Kind::Failure(ProduceFailure {
                        correlation_id: message.correlation_id,
                        topic_id: message.topic_id,
                        partition: message.partition,
                        error: Some(error.to_item()),
                    })));
            }
        }
    }

    fn admit(&self, message: &ProduceBatch) -> Result<(Batch, Permit, bool), ApiError> {
        let topic = self.core.topic_by_id(Operation::Write, &message.topic_id)?;
        let partition = self.core.led(&topic, message.partition)?;
        let config = topic.config.load();
        let batch = check_batch(&self.core, &config, message.batch.clone())?;
        let permit = self
            .core
            .budget
            .take(&partition, message.batch.len() as u64)?;
        Ok((batch, permit, config.log_append_time))
    }
}

/// Parses and checks a client's batch.
///
/// # Errors
/// `RECORD_TOO_LARGE`, `CORRUPT_BATCH`, `INVALID_ARGUMENT` for what clients may not send, `NOT_SUPPORTED`.
pub(super) fn check_batch(
    core: &Core,
    config: &TopicConfig,
    bytes: bytes::Bytes,
) -> Result<Batch, ApiError> {
    let limit = config.max_message_bytes;
    if bytes.len() > limit {
        return Err(too_large(bytes.len(), limit));
    }
    let batch = Batch::parse(bytes).map_err(|error| errors::from_record(&error))?;
    let header = *batch.header();
    if header.is_control() {
        return Err(ApiError::invalid(
            "batch",
            "control batches are the broker's own",
        ));
    }
    if header.is_transactional() {
        return Err(ApiError::new(
            Reason::NotSupported,
            "transactions are not built yet",
        ));
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return Err(ApiError::invalid(
            "batch",
            "a producer's batch carries create time; the topic decides about log append time",
        ));
    }
    let found = batch
        .inspect(&core.batch_limits(config))
        .map_err(|error| errors::from_record(&error))?;
    if found.max_timestamp == header.max_timestamp {
        return Ok(batch);
    }
    // As Kafka does: the index by time must not depend on a producer's arithmetic.
    let corrected = batch.with_max_timestamp(found.max_timestamp);
    batch
        .with_header(corrected)
        .map_err(|error| errors::from_record(&error))
}

/// `RECORD_TOO_LARGE` with both figures.
pub(super) fn too_large(bytes: usize, limit: usize) -> ApiError {
    ApiError::new(
        Reason::RecordTooLarge,
        format!("a batch of {bytes} bytes exceeds the topic's max.message.bytes of {limit}"),
    )
    .with("max_message_bytes", limit)
    .with_field("batch")
}

/// What this broker says of itself.
pub(super) fn our_hello(core: &Core) -> Hello {
    Hello {
        software: concat!("timberline/", env!("CARGO_PKG_VERSION")).to_owned(),
        protocol_version: PROTOCOL_VERSION,
        rack: core.config.broker.rack.clone(),
    }
}

/// # Errors
/// `UNSUPPORTED_VERSION` below the first version.
pub(super) fn check_version(hello: &Hello) -> Result<(), ApiError> {
    if hello.protocol_version < 1 {
        return Err(ApiError::new(
            Reason::UnsupportedVersion,
            format!(
                "protocol version {} does not exist; this broker speaks 1 to {PROTOCOL_VERSION}",
                hello.protocol_version
            ),
        ));
    }
    Ok(())
}

/// What a broken inbound stream is answered with. tonic says OUT_OF_RANGE to a message beyond the receive limit.
pub(super) fn inbound_error(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        let message = format!(
            "a message exceeds what this broker receives: {}",
            status.message()
        );
        return ApiError::new(Reason::RecordTooLarge, message).to_status();
    }
    status
}

fn respond(kind: produce_response::Kind) -> ProduceResponse {
    ProduceResponse { kind: Some(kind) }
}

fn message(answer: Answer) -> ProduceResponse {
    let topic_id = id_bytes(answer.topic);
    respond(match answer.outcome {
        Ok(acked) => produce_response::Kind::Ack(ProduceAck {
            correlation_id: answer.correlation_id,
            topic_id,
            partition: answer.partition,
            base_offset: acked.base_offset,
            leader_epoch: acked.leader_epoch,
            log_append_time_ms: acked.log_append_time_ms,
            duplicate: acked.duplicate,
            throttle_ms: 0,
            log_start_offset: acked.log_start,
        }),
        Err(error) => produce_response::Kind::Failure(ProduceFailure {
            correlation_id: answer.correlation_id,
            topic_id,
            partition: answer.partition,
            error: Some(error.to_item()),
        }),
    })
}

impl Stream for ProduceStream {
    type Item = Result<ProduceResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut taken = 0;
        loop {
            if let Some(response) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            if this.collect_answers(context) {
                continue;
            }
            if !this.drained && this.draining.as_mut().poll(context).is_ready() {
                this.drained = true;
                if matches!(this.state, State::Handshake | State::Open) {
                    this.end(None);
                    let reason = "this broker is shutting down".to_owned();
                    this.ready
                        .push_back(respond(produce_response::Kind::GoAway(GoAway { reason })));
                }
                continue;
            }
            match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Ending(status) if this.in_flight == 0 => {
                    let status = status.take();
                    this.state = State::Ended;
                    return Poll::Ready(status.map(|status| Err(*status)));
                }
                State::Ending(_) => return Poll::Pending,
                State::Handshake | State::Open => {}
            }
            if !this.may_read() {
                return Poll::Pending;
            }
            if taken == MESSAGES_PER_POLL {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            taken += 1;
            match Pin::new(&mut this.inbound).poll_next(context) {
                Poll::Ready(Some(Ok(request))) => this.receive(request),
                Poll::Ready(Some(Err(status))) => this.end(Some(inbound_error(status))),
                Poll::Ready(None) => this.end(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
