//! The client: sends batches, and times each until its acknowledgement.

use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use timberline_benches::random_bytes;

use crate::replica::{connect, joined, told};

/// An acknowledgement that takes longer ends the run.
const PATIENCE: Duration = Duration::from_secs(30);
/// Different batches, sent in turn.
const POOL: u64 = 32;

/// What is sent.
pub(crate) struct Load {
    pub(crate) batch_bytes: usize,
    /// At most so many.
    pub(crate) batches: u64,
    /// At most for so long.
    pub(crate) longest: Duration,
    /// Batches without an acknowledgement, at least 1.
    pub(crate) in_flight: usize,
    /// Between two batches; none: as fast as it goes.
    pub(crate) every: Option<Duration>,
}

/// What came of it.
pub(crate) struct Outcome {
    /// Sent and acknowledged.
    pub(crate) bytes: u64,
    /// From the first batch to the last acknowledgement.
    pub(crate) took: Duration,
    /// Of each batch, ascending; at least one.
    latencies: Vec<Duration>,
}

impl Outcome {
    /// The latency that this portion of the batches does not exceed.
    pub(crate) fn latency(&self, portion: f64) -> Duration {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * portion).round() as usize]
    }
}

/// A batch on its way.
struct Sent {
    /// The position after its last byte.
    end: u64,
    /// When it was sent, or due.
    at: Instant,
}

impl Load {
    /// Sends all of it and waits for the last acknowledgement.
    pub(crate) fn run(&self, leader: SocketAddr) -> anyhow::Result<Outcome> {
        let pool: Vec<Bytes> = (0..POOL)
            .map(|seed| random_bytes(self.batch_bytes, seed))
            .collect();
        let stream = connect(&leader)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // The channel is the window: its reader takes a batch out once that is acknowledged, and holds one in its hands.
        let (sent, window) = sync_channel(self.in_flight - 1);
        let began = Instant::now();
        thread::scope(|scope| {
            let sender = scope.spawn(|| self.send(&stream, &pool, began, sent));
            let latencies = await_acks(&stream, window);
            let took = began.elapsed();
            let bytes = joined(sender.join());
            let mut latencies = latencies?;
            let bytes = bytes?;
            anyhow::ensure!(!latencies.is_empty(), "nothing was sent");
            latencies.sort_unstable();
            Ok(Outcome {
                bytes,
                took,
                latencies,
            })
        })
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        pool: &[Bytes],
        began: Instant,
        sent: SyncSender<Sent>,
    ) -> anyhow::Result<u64> {
        let mut end = 0;
        for batch in pool.iter().cycle().take(self.batches as usize) {
            let now = Instant::now();
            let due = self.every.map_or(now, |every| {
                began + every.mul_f64(end as f64 / self.batch_bytes as f64)
            });
            if due.saturating_duration_since(began) >= self.longest
                || began.elapsed() >= self.longest
            {
                break;
            }
            thread::sleep(due.saturating_duration_since(now));
            end += batch.len() as u64;
            sent.send(Sent { end, at: due })?;
            stream.write_all(batch)?;
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(end)
    }
}

/// The latency of each batch in the order of sending.
fn await_acks(stream: &TcpStream, window: Receiver<Sent>) -> anyhow::Result<Vec<Duration>> {
    let mut acks = BufReader::new(stream);
    let mut acknowledged = 0;
    let mut latencies = Vec::new();
    for batch in window {
        while acknowledged < batch.end {
            acknowledged = told(&mut acks)?.ok_or_else(|| {
                anyhow::anyhow!("the leader went before its last acknowledgement")
            })?;
        }
        latencies.push(batch.at.elapsed());
    }
    Ok(latencies)
}
