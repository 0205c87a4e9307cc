//! The leader and its followers: bytes in, positions out.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::{Bytes, BytesMut};
use timberline_benches::say;

use crate::copy::{Copy, prewritten};

/// Bytes of one buffer that is read into.
const BLOCK_BYTES: usize = 1 << 20;
/// Chunks that wait for the leader's file, and for each follower.
const CHUNKS: usize = 64;
/// Positions that wait for the leader's look at them.
const POSITIONS: usize = 1024;
/// The leader and two followers.
const COPIES: usize = 3;

/// Writes what the leader sends and says how much of it is synced.
pub(crate) fn follow(file: &Path) -> anyhow::Result<()> {
    let file = prewritten(file)?;
    let mut leader = listen()?;
    let mut told = leader.try_clone()?;
    let mut copy = Copy::new(file, move |position| tell(&mut told, position));
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let read = leader.read(&mut block)?;
        if read == 0 {
            break;
        }
        copy.write(&block[..read])?;
    }
    say(&copy.finish()?.to_string());
    Ok(())
}

/// Writes what the client sends, forwards it, and says how much of it a majority has synced.
pub(crate) fn lead(file: &Path, followers: &[SocketAddr]) -> anyhow::Result<()> {
    let file = prewritten(file)?;
    let followers = followers
        .iter()
        .map(connect)
        .collect::<io::Result<Vec<_>>>()?;
    let (synced, positions) = sync_channel(POSITIONS);
    let own = synced.clone();
    let copy = Copy::new(file, move |position| {
        own.send((0, position)).map_err(io::Error::other)
    });
    let client = listen()?;
    thread::scope(|scope| {
        let (to_disk, chunks) = sync_channel(CHUNKS);
        let disk = scope.spawn(|| keep(copy, chunks));
        let mut copies = vec![to_disk];
        let mut threads = vec![scope.spawn(|| acknowledge(&client, positions))];
        for (at, follower) in followers.iter().enumerate() {
            let (to_follower, chunks) = sync_channel(CHUNKS);
            copies.push(to_follower);
            threads.push(scope.spawn(move || forward(follower, chunks)));
            let synced = synced.clone();
            threads.push(scope.spawn(move || hear(follower, at + 1, &synced)));
        }
        drop(synced);
        receive(&client, copies)?;
        for thread in threads {
            joined(thread.join())?;
        }
        say(&joined(disk.join())?.to_string());
        Ok(())
    })
}

/// Hands what the client sends to every copy.
fn receive(mut client: &TcpStream, copies: Vec<SyncSender<Bytes>>) -> anyhow::Result<()> {
    let mut free = BytesMut::new();
    loop {
        if free.is_empty() {
            free = BytesMut::zeroed(BLOCK_BYTES);
        }
        let read = client.read(&mut free)?;
        if read == 0 {
            return Ok(());
        }
        let chunk = free.split_to(read).freeze();
        for copy in &copies {
            copy.send(chunk.clone())?;
        }
    }
}

/// The leader's own copy.
fn keep(mut copy: Copy, chunks: Receiver<Bytes>) -> anyhow::Result<u64> {
    for chunk in chunks {
        copy.write(&chunk)?;
    }
    copy.finish()
}

fn forward(mut follower: &TcpStream, chunks: Receiver<Bytes>) -> anyhow::Result<()> {
    for chunk in chunks {
        follower.write_all(&chunk)?;
    }
    Ok(follower.shutdown(Shutdown::Write)?)
}

fn hear(
    follower: &TcpStream,
    number: usize,
    synced: &SyncSender<(usize, u64)>,
) -> anyhow::Result<()> {
    let mut positions = BufReader::new(follower);
    while let Some(position) = told(&mut positions)? {
        synced.send((number, position))?;
    }
    Ok(())
}

/// Tells the client what two of three have: the middle one of their positions.
fn acknowledge(mut client: &TcpStream, positions: Receiver<(usize, u64)>) -> anyhow::Result<()> {
    let mut synced = [0; COPIES];
    let mut acknowledged = 0;
    while let Ok(first) = positions.recv() {
        for (number, position) in std::iter::once(first).chain(positions.try_iter()) {
            synced[number] = position;
        }
        let mut sorted = synced;
        sorted.sort_unstable();
        if sorted[COPIES / 2] > acknowledged {
            acknowledged = sorted[COPIES / 2];
            tell(&mut client, acknowledged)?;
        }
    }
    Ok(())
}

fn tell(to: &mut impl Write, position: u64) -> io::Result<()> {
    to.write_all(&position.to_be_bytes())
}

/// The next position that the other end tells; none once it has closed.
pub(crate) fn told(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut position = [0; 8];
    match from.read_exact(&mut position) {
        Ok(()) => Ok(Some(u64::from_be_bytes(position))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The one connection to this process, once whoever started it has been told the address.
fn listen() -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&listener.local_addr()?.to_string());
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What a thread came to.
pub(crate) fn joined<T, E: Into<anyhow::Error>>(
    result: thread::Result<Result<T, E>>,
) -> anyhow::Result<T> {
    result
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?
        .map_err(Into::into)
}
