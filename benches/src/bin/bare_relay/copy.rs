//! One copy: a prewritten file, and a thread that syncs whatever is written, in one go.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Length of the prewritten file; after its end the beginning is written again.
const FILE_BYTES: u64 = 256 << 20;
/// Writes that may wait for a sync.
const UNSYNCED_WRITES: usize = 1024;

/// A new file, zeros already on the disk, so that a sync has no metadata to write.
pub(crate) fn prewritten(path: &Path) -> io::Result<File> {
    let file = File::create_new(path)?;
    let zeros = vec![0; 1 << 20];
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// A prewritten file, and how far it is written.
pub(crate) struct Copy {
    file: Arc<File>,
    /// Bytes written so far.
    position: u64,
    written: SyncSender<u64>,
    syncer: JoinHandle<io::Result<()>>,
}

impl Copy {
    /// `synced` is told how far the file is synced, after each sync.
    pub(crate) fn new(
        file: File,
        synced: impl FnMut(u64) -> io::Result<()> + Send + 'static,
    ) -> Copy {
        let file = Arc::new(file);
        let (written, positions) = sync_channel(UNSYNCED_WRITES);
        let theirs = Arc::clone(&file);
        Copy {
            file,
            position: 0,
            written,
            syncer: std::thread::spawn(move || sync(&theirs, &positions, synced)),
        }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let at = self.position % FILE_BYTES;
            let room = bytes.len().min((FILE_BYTES - at) as usize);
            let (now, later) = bytes.split_at(room);
            self.file.write_all_at(now, at)?;
            self.position += room as u64;
            bytes = later;
        }
        self.written.send(self.position).map_err(io::Error::other)
    }

    /// Waits until all is synced; gives the bytes that were written.
    pub(crate) fn finish(self) -> anyhow::Result<u64> {
        drop(self.written);
        crate::replica::joined(self.syncer.join())?;
        Ok(self.position)
    }
}

/// Group commit: each sync covers what was written while the last one ran.
fn sync(
    file: &File,
    written: &Receiver<u64>,
    mut synced: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    while let Ok(first) = written.recv() {
        let position = written.try_iter().last().unwrap_or(first);
        file.sync_data()?;
        synced(position)?;
    }
    Ok(())
}
