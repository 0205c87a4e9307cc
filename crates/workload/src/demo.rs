//! The demo: a broker loses its life twice, and nobody loses a record.
//!
//! A real file is sent in pieces to one partition of a broker that runs in a process of its own. In the middle the
//! process is killed with SIGKILL and started again on the same directory and port; the producer rides it out. After the
//! last acknowledgement it is killed once more, so that what is read back comes from the disk, and the file is put
//! together again from the log and compared byte for byte.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use timberline_client::{
    Client, ClientOptions, ConsumerOptions, NewTopic, Position, ProducerOptions, ProducerRecord,
};
use tokio::runtime::Handle;

use crate::error::{Error, Result};
use crate::ledger::{Digest, Ledger, Verdict};
use crate::process::{BrokerAddresses, BrokerProcess};
use crate::pump::{Outcomes, Pump, PumpOptions};

/// The topic of the demo.
pub const TOPIC: &str = "demo";
/// How long the sending is stretched to, so that it can be interrupted.
const SEND_FOR: Duration = Duration::from_secs(2);
/// How long a broker may take to start.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// The first kill comes when this share of the pieces is acknowledged, in percent…
const KILL_FROM: usize = 30;
/// …and no more than this share is sent before it.
const KILL_UNTIL: usize = 60;
/// Between two looks at what is acknowledged.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the killed broker stays away.
const AWAY_FOR: Duration = Duration::from_millis(500);
/// Longest wait for the next record when reading back.
const READ_PATIENCE: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The `timberline` program.
    pub program: PathBuf,
    /// The file to send.
    pub file: PathBuf,
    /// Bytes of a piece.
    pub piece_bytes: usize,
    /// At most this much of the file, in bytes.
    pub bytes_max: u64,
}

/// What happens, as it happens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DemoEvent {
    /// A broker serves.
    Started {
        /// Its process id.
        pid: u32,
        /// Its address.
        address: String,
        /// Its data directory.
        data_dir: PathBuf,
        /// How long it took.
        took: Duration,
    },
    /// The file is being sent.
    Sending {
        /// Its path.
        file: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// Pieces it is cut into.
        pieces: u64,
    },
    /// The broker was killed.
    Killed {
        /// Its process id.
        pid: u32,
        /// Pieces acknowledged by then.
        acknowledged: u64,
        /// Pieces in all.
        pieces: u64,
    },
    /// It serves again.
    Restarted {
        /// Its new process id.
        pid: u32,
        /// From the start of the process until it answered.
        took: Duration,
    },
    /// All was sent.
    Sent {
        /// Pieces acknowledged.
        acknowledged: u64,
    },
    /// All was read back.
    Read {
        /// Pieces read.
        read: u64,
        /// Their bytes equal the file's.
        identical: bool,
    },
}

/// What the demo came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// Times the broker was killed.
    pub kills: u64,
    /// Milliseconds from the start of the process to serving, of each restart.
    pub restart_ms: Vec<f64>,
    /// What was acknowledged against what was read.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The file came back byte for byte.
    pub identical: bool,
    /// How long it all took.
    pub seconds: f64,
}

impl DemoReport {
    /// Nothing was lost and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.identical && self.verdict.is_clean()
    }
}

/// Runs the demo in a temporary directory, which is removed with what is in it.
///
/// # Errors
/// The broker can't be started or reached, or a piece was not acknowledged at all.
pub async fn run(
    options: &DemoOptions,
    mut tell: impl FnMut(DemoEvent) + Send,
) -> Result<DemoReport> {
    let begun = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix("timberline-demo-")
        .tempdir()
        .map_err(Error::io("making a temporary directory"))?;
    let mut stage = Stage {
        program: options.program.clone(),
        data_dir: dir.path().join("data"),
        log: dir.path().join("broker.log"),
        addresses: BrokerAddresses::free()?,
        restart_ms: Vec::new(),
    };
    let pieces = Arc::new(cut(&options.file, options.piece_bytes, options.bytes_max)?);
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();

    let (broker, took) = stage.start().await?;
    tell(DemoEvent::Started {
        pid: broker.pid(),
        address: stage.addresses.grpc.to_string(),
        data_dir: stage.data_dir.clone(),
        took,
    });
    let client = stage.client().await?;
    client.admin().create_topic(NewTopic::new(TOPIC, 1)).await?;
    tell(DemoEvent::Sending {
        file: options.file.clone(),
        bytes,
        pieces: pieces.len() as u64,
    });
    let (broker, outcomes) = send_and_kill(&mut stage, broker, &client, &pieces, &mut tell).await?;
    if let Some(error) = outcomes.first_error {
        return Err(error.into());
    }
    tell(DemoEvent::Sent {
        acknowledged: outcomes.acknowledged,
    });
    let all = outcomes.acknowledged;
    let _broker = stage.kill(broker, || all, pieces.len(), &mut tell).await?;

    let mut ledger = Ledger::default();
    for (tag, piece) in pieces.iter().enumerate() {
        ledger.sent(tag as u64, Digest::of(piece));
    }
    for ack in &outcomes.acks {
        ledger.acknowledged(ack.tag, ack.partition, ack.offset);
    }
    let identical = read_back(&stage.client().await?, &pieces, &mut ledger).await?;
    let verdict = ledger.verdict();
    tell(DemoEvent::Read {
        read: verdict.read,
        identical,
    });
    Ok(DemoReport {
        bytes,
        kills: stage.restart_ms.len() as u64,
        restart_ms: stage.restart_ms,
        verdict,
        identical,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// What does not change over the broker's lives.
struct Stage {
    program: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    addresses: BrokerAddresses,
    restart_ms: Vec<f64>,
}

impl Stage {
    async fn start(&self) -> Result<(BrokerProcess, Duration)> {
        let begun = Instant::now();
        let mut broker =
            BrokerProcess::start(&self.program, &self.data_dir, self.addresses, &self.log)?;
        broker.wait_ready(START_PATIENCE).await?;
        Ok((broker, begun.elapsed()))
    }

    async fn client(&self) -> Result<Client> {
        let options = ClientOptions::default().bootstrap([self.addresses.grpc.to_string()]);
        Ok(Client::connect(options).await?)
    }

    /// Kills the broker and starts it again after a while. `acknowledged` counts the pieces once it is dead.
    async fn kill(
        &mut self,
        mut broker: BrokerProcess,
        acknowledged: impl FnOnce() -> u64,
        pieces: usize,
        tell: &mut (impl FnMut(DemoEvent) + Send),
    ) -> Result<BrokerProcess> {
        broker.kill()?;
        tell(DemoEvent::Killed {
            pid: broker.pid(),
            acknowledged: acknowledged(),
            pieces: pieces as u64,
        });
        tokio::time::sleep(AWAY_FOR).await;
        let (broker, took) = self.start().await?;
        self.restart_ms.push(took.as_secs_f64() * 1e3);
        tell(DemoEvent::Restarted {
            pid: broker.pid(),
            took,
        });
        Ok(broker)
    }
}

/// The pieces of a file. It is a demo: the file is held in memory, up to the bound.
fn cut(path: &Path, piece_bytes: usize, bytes_max: u64) -> Result<Vec<Bytes>> {
    let io = || Error::io(format!("reading {}", path.display()));
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max).read_to_end(&mut content))
        .map_err(io())?;
    if content.is_empty() || piece_bytes == 0 {
        return Err(Error::Invalid(format!("{} is empty", path.display())));
    }
    let content = Bytes::from(content);
    let starts = (0..content.len()).step_by(piece_bytes);
    Ok(starts
        .map(|at| content.slice(at..(at + piece_bytes).min(content.len())))
        .collect())
}

/// Sends all pieces; kills the broker in the middle, and starts it again.
async fn send_and_kill(
    stage: &mut Stage,
    broker: BrokerProcess,
    client: &Client,
    pieces: &Arc<Vec<Bytes>>,
    tell: &mut (impl FnMut(DemoEvent) + Send),
) -> Result<(BrokerProcess, Outcomes)> {
    let producer = client.producer(ProducerOptions::default()).await?;
    producer.prepare(TOPIC).await?;
    let options = PumpOptions {
        keep_acks: true,
        measure: false,
    };
    let pump = Pump::new(producer.clone(), Handle::current(), options);
    let tally = pump.tally();
    let (dead, killed) = mpsc::channel();
    let to_send = Arc::clone(pieces);
    let sending = tokio::task::spawn_blocking(move || send(pump, &to_send, &killed));
    let enough = (pieces.len() * KILL_FROM / 100) as u64;
    // When the sender gave up early its result says why.
    while tally.acknowledged() < enough && tally.failed() == 0 && !sending.is_finished() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let broker = if tally.acknowledged() >= enough {
        let count = || {
            let _ = dead.send(());
            tally.acknowledged()
        };
        stage.kill(broker, count, pieces.len(), tell).await?
    } else {
        broker
    };
    drop(dead);
    let outcomes = sending.await??;
    let _ = producer.close().await;
    Ok((broker, outcomes))
}

/// Sends at a pace that leaves time to be interrupted, and waits in the middle until `killed` has news or is closed.
fn send(mut pump: Pump, pieces: &[Bytes], killed: &mpsc::Receiver<()>) -> Result<Outcomes> {
    let hold = pieces.len() * KILL_UNTIL / 100;
    let topic: Arc<str> = TOPIC.into();
    let pause = SEND_FOR / pieces.len().max(1) as u32;
    let begun = Instant::now();
    for (tag, piece) in pieces.iter().enumerate() {
        let due = begun + pause * tag as u32;
        let now = Instant::now();
        if due > now {
            pump.hand_over();
            std::thread::sleep(due - now);
        }
        if tag == hold {
            pump.hand_over();
            let _ = killed.recv();
        }
        let record = ProducerRecord::keyed(
            Arc::clone(&topic),
            Bytes::copy_from_slice(&(tag as u64).to_be_bytes()),
            piece.clone(),
        );
        pump.send(record.with_partition(0), tag as u64, due)?;
    }
    Ok(pump.finish())
}

/// Reads the partition and compares it with the file; the ledger learns of every record.
async fn read_back(client: &Client, pieces: &[Bytes], ledger: &mut Ledger) -> Result<bool> {
    let end = client
        .admin()
        .list_offsets(TOPIC, &[(0, Position::Latest)])
        .await?[0]
        .offset;
    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    consumer.assign(TOPIC, 0, Position::Earliest).await?;
    let mut identical = true;
    let mut at = 0;
    let mut position = 0;
    while position < end {
        let record = tokio::time::timeout(READ_PATIENCE, consumer.recv())
            .await
            .map_err(|_| Error::Starved {
                read: at as u64,
                wanted: pieces.len() as u64,
                after: READ_PATIENCE,
            })??;
        position = record.offset + 1;
        let value = record.value.unwrap_or_default();
        let tag = record
            .key
            .as_deref()
            .and_then(|key| key.try_into().ok())
            .map_or(u64::MAX, u64::from_be_bytes);
        ledger.read(tag, Digest::of(&value), record.partition, record.offset);
        identical &= pieces.get(at) == Some(&value);
        at += 1;
    }
    Ok(identical && at == pieces.len())
}
