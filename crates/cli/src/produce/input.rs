//! Cutting an input into lines or pieces, without a copy of each.

use std::io::{self, ErrorKind, Read};

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Longest line, in bytes: the largest record that a producer takes.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Lines, each ended by a delimiter, which is not part of them; the last one need not be.
pub(super) struct Lines<R> {
    source: R,
    delimiter: Finder<'static>,
    buffer: BytesMut,
    /// No delimiter begins before this position of the buffer.
    searched: usize,
    ended: bool,
    number: u64,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(source: R, delimiter: Vec<u8>) -> Lines<R> {
        Lines {
            source,
            delimiter: Finder::new(&delimiter).into_owned(),
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
            number: 0,
        }
    }

    /// The number of the line returned last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line; `waiting` is called before the source is read, which may take long.
    pub(super) fn next_line(&mut self, mut waiting: impl FnMut()) -> io::Result<Option<Bytes>> {
        let width = self.delimiter.needle().len();
        loop {
            if let Some(found) = self.delimiter.find(&self.buffer[self.searched..]) {
                let mut line = self.buffer.split_to(self.searched + found + width);
                line.truncate(line.len() - width);
                self.searched = 0;
                self.number += 1;
                return Ok(Some(line.freeze()));
            }
            if self.ended {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                self.searched = 0;
                self.number += 1;
                return Ok(Some(self.buffer.split().freeze()));
            }
            // The delimiter may have begun at the end.
            self.searched = (self.buffer.len() + 1).saturating_sub(width);
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "line {} is longer than {LINE_BYTES_MAX} bytes; send it with --file",
                        self.number + 1
                    ),
                ));
            }
            waiting();
            self.ended = read_into(&mut self.source, &mut self.buffer, READ_BYTES)? == 0;
        }
    }
}

/// Pieces of one size; the last may be shorter.
pub(super) struct Pieces<R> {
    source: R,
    size: usize,
    buffer: BytesMut,
}

impl<R: Read> Pieces<R> {
    pub(super) fn new(source: R, size: usize) -> Pieces<R> {
        Pieces {
            source,
            size,
            buffer: BytesMut::new(),
        }
    }

    pub(super) fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        while self.buffer.len() < self.size {
            let room = (self.size - self.buffer.len()).max(READ_BYTES);
            if read_into(&mut self.source, &mut self.buffer, room)? == 0 {
                let rest = self.buffer.split().freeze();
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            }
        }
        Ok(Some(self.buffer.split_to(self.size).freeze()))
    }
}

/// Reads up to `room` bytes behind those of the buffer; 0 is the end.
fn read_into(source: &mut impl Read, buffer: &mut BytesMut, room: usize) -> io::Result<usize> {
    let len = buffer.len();
    buffer.resize(len + room, 0);
    loop {
        match source.read(&mut buffer[len..]) {
            Ok(read) => {
                buffer.truncate(len + read);
                return Ok(read);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                buffer.truncate(len);
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(out.len());
            out[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn lines(text: &[u8], delimiter: &[u8], step: usize) -> Vec<Bytes> {
        let mut lines = Lines::new(Trickle(text, step), delimiter.to_vec());
        let mut all = Vec::new();
        while let Some(line) = lines.next_line(|| {}).unwrap() {
            all.push(line);
        }
        assert_eq!(lines.number(), all.len() as u64);
        all
    }

    #[test]
    fn lines_are_cut_wherever_reads_end() {
        for step in 1..9 {
            assert_eq!(lines(b"a\n\nbc\n", b"\n", step), ["a", "", "bc"]);
            assert_eq!(lines(b"a\nlast", b"\n", step), ["a", "last"]);
            assert_eq!(lines(b"a--b-c--", b"--", step), ["a", "b-c"]);
            assert_eq!(lines(b"a---b", b"--", step), ["a", "-b"]);
            assert_eq!(lines(b"", b"\n", step), [""; 0]);
        }
    }

    #[test]
    fn pieces_have_their_size_wherever_reads_end() {
        for step in 1..9 {
            let mut pieces = Pieces::new(Trickle(b"abcdefgh", step), 3);
            let mut all = Vec::new();
            while let Some(piece) = pieces.next_piece().unwrap() {
                all.push(piece);
            }
            assert_eq!(all, ["abc", "def", "gh"]);
        }
    }
}
