//! The demo: a cluster loses a broker in the middle of its work, and nobody loses a record.
//!
//! Three brokers run in processes of their own, in three racks. A real file is sent in pieces to a topic of three
//! replicas. In the middle the broker that leads most is killed with SIGKILL; the others take over and the producer goes
//! on. The dead one is started again and catches up. Then another one is killed for good, so that what is read comes from
//! the two that are left, the one that was dead among them; the file is put together again and compared byte for byte.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use timberline_client::{
    Client, ConsumerOptions, NewTopic, Position, ProducerOptions, ProducerRecord,
};
use tokio::runtime::Handle;

use crate::cluster::{Cluster, ClusterOptions};
use crate::error::{Error, Result};
use crate::ledger::{Digest, Ledger, Verdict};
use crate::observer::{LOOK_EVERY, Observer, is_whole, most_leading};
use crate::pump::{Outcomes, Pump, PumpOptions, Tally};

/// The topic of the demo.
pub const TOPIC: &str = "demo";
/// Its partitions.
pub const PARTITIONS: i32 = 6;
/// Its replicas, where there are brokers enough.
const REPLICAS: usize = 3;
/// How long the sending is stretched to, so that it can be interrupted.
const SEND_FOR: Duration = Duration::from_secs(3);
/// How long brokers may take to start, to take over, and to catch up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first kill comes when this share of the pieces is acknowledged, in percent…
const KILL_FROM: usize = 30;
/// …and no more than this share is sent before it.
const KILL_UNTIL: usize = 60;
/// Between two looks at what is acknowledged.
const GLANCE_EVERY: Duration = Duration::from_millis(1);
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
    /// A broker is started in each of these racks.
    pub racks: Vec<String>,
}

/// A broker of the demo.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoBroker {
    /// Its number.
    pub id: i32,
    /// Its rack.
    pub rack: String,
    /// Its process id.
    pub pid: u32,
    /// Its address.
    pub address: String,
}

/// What happens, as it happens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DemoEvent {
    /// The cluster serves.
    Started {
        /// Its brokers.
        brokers: Vec<DemoBroker>,
        /// Where logs and data are.
        dir: PathBuf,
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
        /// Copies of each.
        replicas: usize,
    },
    /// A broker was killed.
    Killed {
        /// Which.
        broker: DemoBroker,
        /// Partitions that it led.
        leads: usize,
        /// Pieces acknowledged by then.
        acknowledged: u64,
        /// Pieces in all.
        pieces: u64,
    },
    /// All of its partitions have other leaders.
    TakenOver {
        /// Since it was killed.
        took: Duration,
    },
    /// It serves again, and its replicas are up to date.
    Returned {
        /// Which.
        broker: DemoBroker,
        /// From the start of the process until it answered.
        took: Duration,
        /// From then on until it had caught up.
        caught_up: Duration,
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
        /// Brokers that are left.
        brokers: usize,
        /// Their bytes equal the file's.
        identical: bool,
    },
}

/// What the demo came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    /// Bytes of the file.
    pub bytes: u64,
    /// Brokers of the cluster.
    pub brokers: u64,
    /// Times a broker was killed.
    pub kills: u64,
    /// Milliseconds from a kill until others led all partitions, for each kill.
    pub takeover_ms: Vec<f64>,
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
/// The brokers can't be started or reached, or a piece was not acknowledged at all.
pub async fn run(
    options: &DemoOptions,
    mut tell: impl FnMut(DemoEvent) + Send,
) -> Result<DemoReport> {
    let begun = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix("timberline-demo-")
        .tempdir()
        .map_err(Error::io("making a temporary directory"))?;
    let pieces = Arc::new(cut(&options.file, options.piece_bytes, options.bytes_max)?);
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut stage = Stage::start(options, dir.path(), pieces.len(), &mut tell).await?;
    let client = Client::connect(stage.cluster.client_options()).await?;
    let topic = NewTopic::new(TOPIC, PARTITIONS).replication_factor(stage.replicas as i32);
    client.admin().create_topic(topic).await?;
    tell(DemoEvent::Sending {
        file: options.file.clone(),
        bytes,
        pieces: pieces.len() as u64,
        replicas: stage.replicas,
    });
    let (first, outcomes) = send_and_kill(&mut stage, &client, &pieces, &mut tell).await?;
    if let Some(error) = outcomes.first_error {
        return Err(error.into());
    }
    tell(DemoEvent::Sent {
        acknowledged: outcomes.acknowledged,
    });
    let second = stage.next_victim(first).await?;
    stage.kill(second, outcomes.acknowledged, &mut tell).await?;
    if stage.is_alone() {
        stage.bring_back(second, &mut tell).await?;
    }

    let mut ledger = Ledger::default();
    for (tag, piece) in pieces.iter().enumerate() {
        ledger.sent(tag as u64, Digest::of(piece));
    }
    for ack in &outcomes.acks {
        ledger.acknowledged(ack.tag, ack.partition, ack.offset);
    }
    let client = Client::connect(stage.cluster.client_options()).await?;
    let identical = read_back(&client, &pieces, &mut ledger).await?;
    let verdict = ledger.verdict();
    tell(DemoEvent::Read {
        read: verdict.read,
        brokers: stage.brokers_left(),
        identical,
    });
    Ok(DemoReport {
        bytes,
        brokers: options.racks.len() as u64,
        kills: stage.kills,
        takeover_ms: stage.takeover_ms,
        restart_ms: stage.restart_ms,
        verdict,
        identical,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The cluster, and what was done to it.
struct Stage {
    cluster: Cluster,
    observer: Option<Observer>,
    replicas: usize,
    pieces: u64,
    kills: u64,
    away: usize,
    takeover_ms: Vec<f64>,
    restart_ms: Vec<f64>,
}

impl Stage {
    async fn start(
        options: &DemoOptions,
        dir: &Path,
        pieces: usize,
        tell: &mut (impl FnMut(DemoEvent) + Send),
    ) -> Result<Stage> {
        let begun = Instant::now();
        let brokers = options.racks.len();
        let mut cluster = Cluster::start(&ClusterOptions {
            racks: options.racks.clone(),
            ..ClusterOptions::new(&options.program, dir, brokers)
        })?;
        cluster.wait_ready(PATIENCE).await?;
        let mut stage = Stage {
            cluster,
            observer: None,
            replicas: REPLICAS.min(brokers),
            pieces: pieces as u64,
            kills: 0,
            away: 0,
            takeover_ms: Vec::new(),
            restart_ms: Vec::new(),
        };
        let ids = stage
            .cluster
            .specs()
            .map(|spec| spec.id)
            .collect::<Vec<_>>();
        let brokers = ids.into_iter().map(|id| stage.broker(id));
        tell(DemoEvent::Started {
            brokers: brokers.collect::<Result<_>>()?,
            dir: dir.to_owned(),
            took: begun.elapsed(),
        });
        Ok(stage)
    }

    fn broker(&mut self, id: i32) -> Result<DemoBroker> {
        let pid = self.cluster.process(id)?.pid();
        let spec = self.cluster.specs().find(|spec| spec.id == id);
        Ok(DemoBroker {
            id,
            rack: spec.and_then(|spec| spec.rack.clone()).unwrap_or_default(),
            pid,
            address: spec
                .map(|spec| spec.addresses.grpc.to_string())
                .unwrap_or_default(),
        })
    }

    async fn observer(&mut self) -> Result<Observer> {
        if let Some(observer) = &self.observer {
            return Ok(observer.clone());
        }
        let observer = Observer::connect(self.cluster.client_options(), TOPIC).await?;
        Ok(self.observer.insert(observer).clone())
    }

    fn is_alone(&self) -> bool {
        self.cluster.specs().count() == 1
    }

    fn brokers_left(&self) -> usize {
        self.cluster.specs().count() - self.away
    }

    /// The broker that leads most partitions and is not this one, unless there is no other.
    async fn next_victim(&mut self, but: i32) -> Result<i32> {
        let mut topic = self.observer().await?.look().await?;
        topic.partitions.retain(|info| info.leader_id != Some(but));
        let ids: Vec<_> = self.cluster.specs().map(|spec| spec.id).collect();
        let other = ids.iter().copied().find(|id| *id != but);
        Ok(most_leading(&topic).or(other).unwrap_or(but))
    }

    /// Kills a broker and waits until others lead its partitions, if there are others.
    async fn kill(
        &mut self,
        id: i32,
        acknowledged: u64,
        tell: &mut (impl FnMut(DemoEvent) + Send),
    ) -> Result<()> {
        let observer = self.observer().await?;
        let topic = observer.look().await?;
        let led = topic.partitions.iter();
        let leads = led.filter(|info| info.leader_id == Some(id)).count();
        let broker = self.broker(id)?;
        self.cluster.kill(id)?;
        self.kills += 1;
        self.away += 1;
        let killed = Instant::now();
        tell(DemoEvent::Killed {
            broker,
            leads,
            acknowledged,
            pieces: self.pieces,
        });
        if self.is_alone() {
            return Ok(());
        }
        let taken = observer.led_by_others_than(&[id], killed + PATIENCE).await;
        let took = taken.ok_or(Error::Leaderless { after: PATIENCE })? - killed;
        self.takeover_ms.push(took.as_secs_f64() * 1e3);
        tell(DemoEvent::TakenOver { took });
        Ok(())
    }

    /// Starts a broker again and waits until its replicas are up to date.
    async fn bring_back(
        &mut self,
        id: i32,
        tell: &mut (impl FnMut(DemoEvent) + Send),
    ) -> Result<()> {
        self.cluster.restart(id)?;
        let took = self.cluster.process(id)?.wait_ready(PATIENCE).await?;
        self.away -= 1;
        self.restart_ms.push(took.as_secs_f64() * 1e3);
        let observer = self.observer().await?;
        let begun = Instant::now();
        loop {
            let seen = observer.look().await;
            if seen.is_ok_and(|topic| is_whole(&topic, self.replicas)) {
                break;
            }
            self.cluster.check_alive()?;
            if begun.elapsed() > PATIENCE {
                return Err(Error::NotInSync { after: PATIENCE });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let broker = self.broker(id)?;
        tell(DemoEvent::Returned {
            broker,
            took,
            caught_up: begun.elapsed(),
        });
        Ok(())
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

/// Sends all pieces; kills the broker that leads most in the middle, and brings it back. Returns which it was.
async fn send_and_kill(
    stage: &mut Stage,
    client: &Client,
    pieces: &Arc<Vec<Bytes>>,
    tell: &mut (impl FnMut(DemoEvent) + Send),
) -> Result<(i32, Outcomes)> {
    let producer = client
        .producer(ProducerOptions::default().linger(Duration::ZERO))
        .await?;
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
        tokio::time::sleep(GLANCE_EVERY).await;
    }
    let topic = stage.observer().await?.look().await?;
    let victim = most_leading(&topic).ok_or(Error::Leaderless { after: PATIENCE })?;
    let disturbed = disturb(stage, victim, &tally, &dead, tell).await;
    // Whatever came of it, the sender goes on to its end.
    drop(dead);
    let outcomes = sending.await??;
    let _ = producer.close().await;
    disturbed?;
    Ok((victim, outcomes))
}

async fn disturb(
    stage: &mut Stage,
    victim: i32,
    tally: &Tally,
    dead: &mpsc::Sender<()>,
    tell: &mut (impl FnMut(DemoEvent) + Send),
) -> Result<()> {
    let acknowledged = tally.acknowledged();
    stage
        .kill(victim, acknowledged, &mut |event| {
            // From here on the sender goes beyond the middle.
            let _ = dead.send(());
            tell(event);
        })
        .await?;
    stage.bring_back(victim, tell).await
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
        let partition = tag as i32 % PARTITIONS;
        pump.send(record.with_partition(partition), tag as u64, due)?;
    }
    Ok(pump.finish())
}

/// Reads the partitions and puts the file together again; the ledger learns of every record.
async fn read_back(client: &Client, pieces: &[Bytes], ledger: &mut Ledger) -> Result<bool> {
    let latest: Vec<_> = (0..PARTITIONS)
        .map(|partition| (partition, Position::Latest))
        .collect();
    let ends = client.admin().list_offsets(TOPIC, &latest).await?;
    let mut left: i64 = ends.iter().map(|end| end.offset).sum();
    let mut consumer = client.consumer(ConsumerOptions::default()).await?;
    for (partition, _) in &latest {
        consumer
            .assign(TOPIC, *partition, Position::Earliest)
            .await?;
    }
    let mut read = 0;
    let mut found: Vec<Option<Bytes>> = vec![None; pieces.len()];
    while left > 0 {
        let record = tokio::time::timeout(READ_PATIENCE, consumer.recv())
            .await
            .map_err(|_| Error::Starved {
                read,
                wanted: pieces.len() as u64,
                after: READ_PATIENCE,
            })??;
        left -= 1;
        read += 1;
        let value = record.value.unwrap_or_default();
        let tag = record
            .key
            .as_deref()
            .and_then(|key| key.try_into().ok())
            .map_or(u64::MAX, u64::from_be_bytes);
        ledger.read(tag, Digest::of(&value), record.partition, record.offset);
        if let Some(place) = found.get_mut(usize::try_from(tag).unwrap_or(usize::MAX)) {
            *place = Some(value);
        }
    }
    let pairs = found.iter().zip(pieces);
    Ok(pairs
        .into_iter()
        .all(|(found, piece)| found.as_ref() == Some(piece)))
}
