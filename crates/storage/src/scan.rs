//! Reading frames one after the other through the file, every check applied.
//!
//! Used where bytes are not trusted yet: recovery, cold reads, replay, verification. It also finds the next whole
//! frame behind damage.

use std::io;

use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::frame::{FRAME_HEADER_LEN, FrameFault, FrameHeader};

/// Bytes read at a time.
const READ_AHEAD: usize = 1 << 20;
const EIO: i32 = 5;

/// Reads frames of one file.
pub(crate) struct FrameScan<'a> {
    file: &'a dyn DiskFile,
    name: String,
    /// Nothing is read behind this position.
    end: u64,
    from_device: bool,
    buf: Vec<u8>,
    buf_at: u64,
}

impl<'a> FrameScan<'a> {
    /// A scan up to `end`. `from_device` reads past the page cache.
    pub(crate) fn new(file: &'a dyn DiskFile, name: String, end: u64, from_device: bool) -> Self {
        FrameScan {
            file,
            name,
            end,
            from_device,
            buf: Vec::new(),
            buf_at: 0,
        }
    }

    /// The frame at a position, its payload checked. The inner error says what is wrong with the bytes.
    pub(crate) fn frame(&mut self, pos: u64) -> Result<Result<(FrameHeader, &[u8]), FrameFault>> {
        let header = match self.header(pos)? {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        if pos + header.frame_len() > self.end {
            return Ok(Err(FrameFault::Short));
        }
        let len = FRAME_HEADER_LEN + header.payload_len as usize;
        let Some(bytes) = self.load(pos, len)? else {
            return Ok(Err(FrameFault::Payload));
        };
        let payload = &bytes[FRAME_HEADER_LEN..];
        Ok(header.check_payload(payload).map(|()| (header, payload)))
    }

    /// The header at a position, the payload not looked at.
    pub(crate) fn header(&mut self, pos: u64) -> Result<Result<FrameHeader, FrameFault>> {
        if pos + FRAME_HEADER_LEN as u64 > self.end {
            return Ok(Err(FrameFault::Short));
        }
        Ok(match self.load(pos, FRAME_HEADER_LEN)? {
            Some(bytes) => FrameHeader::decode(bytes),
            None => Err(FrameFault::Header),
        })
    }

    /// The first whole frame behind `pos` whose index is above `index` and plausible: what follows it must continue
    /// it, or it must end the file. Bytes of a payload that look like a frame are not enough.
    pub(crate) fn next_whole(
        &mut self,
        pos: u64,
        index: u64,
    ) -> Result<Option<(u64, FrameHeader)>> {
        let mut at = pos + 8;
        while at + FRAME_HEADER_LEN as u64 <= self.end {
            if let Ok(header) = self.header(at)? {
                let plausible = header.index > index && header.index - index <= (at - pos) / 8;
                if plausible && self.frame(at)?.is_ok() && self.is_continued(at, &header)? {
                    return Ok(Some((at, header)));
                }
            }
            at += 8;
        }
        Ok(None)
    }

    fn is_continued(&mut self, at: u64, header: &FrameHeader) -> Result<bool> {
        let next = at + header.frame_len();
        if next >= self.end {
            return Ok(next == self.end);
        }
        Ok(self.header(next)?.is_ok_and(|after| {
            after
                .check_follows(header.index, header.next_offset(), header.chain)
                .is_ok()
        }))
    }

    /// `len` bytes at `pos`; `None` where the device can't read them.
    fn load(&mut self, pos: u64, len: usize) -> Result<Option<&[u8]>> {
        let have = self.buf_at..self.buf_at + self.buf.len() as u64;
        if !(have.contains(&pos) && pos + len as u64 <= have.end) {
            let ahead = (self.end - pos).min(READ_AHEAD.max(len) as u64) as usize;
            if !self.fill(pos, ahead)? && !self.fill(pos, len)? {
                self.buf.clear();
                return Ok(None);
            }
        }
        let from = (pos - self.buf_at) as usize;
        Ok(self.buf.get(from..from + len))
    }

    fn fill(&mut self, pos: u64, len: usize) -> Result<bool> {
        self.buf.resize(len, 0);
        self.buf_at = pos;
        let read = if self.from_device {
            self.file.read_device_at(pos, &mut self.buf)
        } else {
            self.file.read_at(pos, &mut self.buf)
        };
        match read {
            Ok(read) => {
                self.buf.truncate(read);
                Ok(true)
            }
            Err(e) if is_unreadable(&e) => Ok(false),
            Err(e) => Err(Error::io(format!("reading {}", self.name))(e)),
        }
    }
}

fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EIO)
}
