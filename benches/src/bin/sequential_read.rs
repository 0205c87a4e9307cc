//! Reading sealed segments through the log, against reading the same mapped bytes with the same checks: every frame
//! header's checksum and every batch's CRC-32C.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use bytes::Bytes;
use timberline_benches::{MB, bench_dir, compare, now_ms, random_batch, topic};
use timberline_storage::disk::{Disk, OpenMode, RealDisk};
use timberline_storage::{
    FIRST_FRAME, FRAME_HEADER_LEN, FrameHeader, Listener, Log, LogConfig, ReplicaId, ReplicaSpec,
    Store, StoreOptions,
};

const BYTES: u64 = 1 << 30;
const READ: usize = 1 << 20;

struct Tell(Sender<u64>);

impl Listener for Tell {
    fn durable(&self, updates: &[(ReplicaId, u64)]) {
        for (_, index) in updates {
            let _ = self.0.send(*index);
        }
    }
    fn poisoned(&self, _: &str) {}
}

fn main() -> anyhow::Result<()> {
    let dir = bench_dir()?;
    let options = StoreOptions::default();
    fill(dir.path(), &options)?;
    let opened = Store::open(Arc::new(RealDisk::new()), dir.path(), options)?;
    let log = opened.logs[0].clone();
    log.commit_to(log.last_index());
    // The first pass verifies what another process wrote; the comparison is about reading.
    read(&log)?;
    let maps = map(dir.path())?;
    compare(
        "sequential read of sealed segments, page cache, 16 KiB batches",
        "MB/s",
        5,
        ("mapped bytes, same checks", || mapped(&maps)),
        ("log", || read(&log)),
    )?;
    Ok(())
}

fn fill(dir: &Path, options: &StoreOptions) -> anyhow::Result<()> {
    let opened = Store::open(Arc::new(RealDisk::new()), dir, options.clone())?;
    let (tell, told) = channel();
    let running = opened.store.start(Arc::new(Tell(tell)))?;
    let spec = ReplicaSpec {
        replica: ReplicaId(1),
        topic: topic(),
        partition: 0,
    };
    let log = opened.store.create_replica(spec, LogConfig::default())?;
    let batch = random_batch(16 << 10, 1000, 1)?;
    while log.size_bytes() < BYTES {
        for _ in 0..256 {
            log.append_batch(1, &batch, now_ms())?;
        }
        while told.recv()? < log.last_index() {}
        log.commit_to(log.last_index());
    }
    running.stop()?;
    Ok(())
}

fn read(log: &Arc<Log>) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut cursor = log.cursor(log.log_start());
    let mut bytes = 0;
    loop {
        let batches = log.read_blocking(&mut cursor, READ)?;
        if batches.is_empty() {
            break;
        }
        for batch in batches {
            let header = timberline_record::BatchHeader::decode(&batch)?;
            anyhow::ensure!(
                crc32c::crc32c(&batch[timberline_record::UNCHECKED_LEN..]) == header.crc
            );
            bytes += batch.len();
        }
    }
    Ok(bytes as f64 / MB / began.elapsed().as_secs_f64())
}

fn map(dir: &Path) -> anyhow::Result<Vec<Bytes>> {
    let disk = RealDisk::new();
    let topic_dir = dir.join("logs").join(topic().simple().to_string());
    let mut maps = Vec::new();
    for entry in disk.list(&topic_dir)? {
        let file = disk.open(&topic_dir.join(&entry.name), OpenMode::ReadOnly)?;
        maps.push(file.map(entry.len)?.bytes(0, entry.len as usize));
    }
    mapped(&maps)?;
    Ok(maps)
}

fn mapped(maps: &[Bytes]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut bytes = 0;
    for map in maps {
        let mut at = FIRST_FRAME as usize;
        while let Some(Ok(header)) = map.get(at..).map(FrameHeader::decode) {
            let from = at + FRAME_HEADER_LEN;
            let payload = &map[from..from + header.payload_len as usize];
            anyhow::ensure!(
                crc32c::crc32c(&payload[timberline_record::UNCHECKED_LEN..]) == header.payload_crc
            );
            bytes += payload.len();
            at += header.frame_len() as usize;
        }
    }
    Ok(bytes as f64 / MB / began.elapsed().as_secs_f64())
}
