//! Reading a record, and telling what a crash may leave from damage. Changes nothing.
//!
//! What a kill leaves at the end, within one boot of the machine: whole frames, the beginning of the next one, then zeros or
//! nothing. What a power loss leaves there: anything, but behind the mark. All else is damage, and refused.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{self, FORMAT, FirstLine, Frame, Good, Header, Kept, LAST_NUMBER, NO_SUM, Sum, UNCHAINED, link_of};
use super::mark::{Found as FoundMark, Mark};
use super::{Change, Damage, JournalError, Replay};

/// No frame is longer, and no segment has more behind its frames than a crash may leave there.
const LONGEST_BYTES: u64 = 256 << 20;

/// Which of a record's changes is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What the change refers to is on record before it. Not so in a segment up to where it is complete: its state comes in
    /// portions, between changes that rely on portions to come.
    pub ordered: bool,
}

/// What was found by replaying.
pub(super) struct Found {
    /// All segments.
    pub segments: Vec<u64>,
    /// The first that counts.
    pub first: Option<u64>,
    /// Whether it was made by a repair: what is before it is kept.
    pub repaired: bool,
    /// Whether what it says of the server is to be compared with it.
    pub unverified: bool,
    /// Where the frames of the last one end.
    pub end: u64,
    /// What is behind them and is to be cut off.
    pub torn: Option<Vec<u8>>,
    /// The last segment's format.
    pub format: u32,
    /// Whether all that counts has this code's format.
    pub current: bool,
    pub next: u64,
    pub sum: Sum,
    /// The boot in which the end was written.
    pub boot: String,
    pub kept: Kept,
}

pub(super) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("journal.{segment:08}"))
}

/// The numbers of the segments in a directory, in order.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        // A state directory that no mount got round to use.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("journal.")?.parse().ok());
        if let Some(number) =
            number.filter(|number| *number <= LAST_NUMBER && segment_path(dir, *number).file_name() == Some(&name))
        {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether there is any record in a directory.
///
/// # Errors
/// When it cannot be listed.
pub fn has_segments(dir: &Path) -> io::Result<bool> {
    Ok(!segments(dir)?.is_empty())
}

/// A segment that is being read.
pub(super) struct Segment {
    path: PathBuf,
    number: u64,
    reader: BufReader<File>,
    length: u64,
    pub header: Header,
    /// Where the next frame begins.
    pub offset: u64,
    line: Vec<u8>,
}

impl Segment {
    pub fn open(dir: &Path, number: u64) -> Result<Self, JournalError> {
        let path = segment_path(dir, number);
        let io = |source| JournalError::Io { path: path.clone(), source };
        let damaged = |what: &str| JournalError::from(Damage::new(&path, 0, what));
        let metadata = fs::symlink_metadata(&path).map_err(io)?;
        if !metadata.is_file() {
            return Err(damaged("it is not a file"));
        }
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
        let mut line = Vec::new();
        reader.by_ref().take(1 << 16).read_until(b'\n', &mut line).map_err(io)?;
        let header = match Header::read(&line) {
            FirstLine::Good(header) => *header,
            FirstLine::Newer(found) => return Err(JournalError::Newer { path, found }),
            FirstLine::Needs(what) => {
                return Err(JournalError::Unknown { path, offset: 0, what: format!("the feature {what:?}") });
            }
            FirstLine::Bad(what) => return Err(damaged(what)),
        };
        if header.oxenfs_journal != UNCHAINED && header.segment != number {
            return Err(damaged(&format!("it is a copy of segment {}", header.segment)));
        }
        let offset = line.len() as u64;
        Ok(Self { path, number, reader, length: metadata.len(), header, offset, line })
    }

    /// The next line as a frame; `None` where only zeros are left, or nothing.
    pub fn next(&mut self) -> Result<Option<Frame>, JournalError> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        self.line.clear();
        // No frame begins with a zero: those behind the end are not read as one long line.
        if self.reader.fill_buf().map_err(io)?.first().is_none_or(|byte| *byte == 0) {
            return Ok(None);
        }
        self.reader.by_ref().take(LONGEST_BYTES).read_until(b'\n', &mut self.line).map_err(io)?;
        Ok(Some(format::decode(&self.line, self.header.oxenfs_journal)))
    }

    /// The line that was read last counts.
    pub fn pass(&mut self) {
        self.offset += self.line.len() as u64;
    }

    fn unknown(&self, what: String) -> JournalError {
        JournalError::Unknown { path: self.path.clone(), offset: self.offset, what }
    }

    /// Whether the record begins with it.
    fn is_beginning(&self) -> bool {
        match self.header.oxenfs_journal {
            UNCHAINED => self.number == 1,
            _ => self.header.first == 1,
        }
    }

    pub fn damage(&self, what: impl Into<String>) -> Damage {
        Damage::new(&self.path, self.offset, what)
    }

    /// What is behind the frames, without the zeros that it ends with; `None` if that is more than a crash leaves.
    fn rest(&self) -> Result<Option<Vec<u8>>, JournalError> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        let left = self.length.saturating_sub(self.offset);
        if left > LONGEST_BYTES {
            return Ok(None);
        }
        let mut rest = vec![0; left as usize];
        self.reader.get_ref().read_exact_at(&mut rest, self.offset).map_err(io)?;
        rest.truncate(zeros_from(&rest));
        Ok(Some(rest))
    }
}

/// How far a chain of frames is.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// The number of the next frame.
    pub next: u64,
    /// The checksum of the last.
    pub sum: Sum,
}

impl Chain {
    pub const START: Self = Self { next: 1, sum: NO_SUM };

    /// Appends to `frames` the next frame, around a body, and goes on behind it.
    pub fn frame(&mut self, body: &[u8], format: u32, frames: &mut Vec<u8>) {
        let chain = (format != UNCHAINED).then_some((self.next, &self.sum));
        let sum = format::frame(body, chain, frames);
        *self = Self { next: self.next + 1, sum };
    }

    /// Whether a frame is the next one.
    pub fn fits(&self, frame: &Good) -> bool {
        frame.chain.is_none_or(|(number, link)| number == self.next && link == link_of(&self.sum))
    }

    /// It is the last one now.
    pub fn pass(&mut self, frame: &Good) {
        self.next = frame.chain.map_or(self.next, |(number, _)| number) + 1;
        self.sum = frame.sum;
    }
}

/// Replays what counts: the last complete segment and those after it. Never holds more than one frame: there may be
/// millions.
pub(super) fn replay(
    dir: &Path,
    mark: &FoundMark,
    boot: &str,
    believe: &mut Replay<'_>,
) -> Result<Option<Found>, JournalError> {
    let segments = segments(dir).map_err(|source| JournalError::Io { path: dir.to_owned(), source })?;
    let mark = mark.mark();
    let last = segments.last().copied().unwrap_or(0);
    if let Some(mark) = mark.filter(|mark| mark.segment > last) {
        return Err(Damage::new(&segment_path(dir, mark.segment), 0, "it is not there").into());
    }
    let Some(first) = first_that_counts(dir, &segments)? else { return Ok(None) };
    let mut reading = Reading {
        chain: Chain::START,
        kept: Kept::default(),
        boot: String::new(),
        whole: false,
        current: true,
        repaired: false,
        unverified: false,
    };
    let mut tail = None;
    for (at, &number) in segments.iter().enumerate().skip(first) {
        let mut segment = Segment::open(dir, number)?;
        reading.begin(&segment, at == first, || segments.get(at.wrapping_sub(1)).copied())?;
        let ended = reading.read(&mut segment, believe)?;
        let is_last = at + 1 == segments.len();
        let torn = reading.judge(&segment, ended, mark.filter(|_| is_last), is_last, boot)?;
        if !reading.whole {
            return Err(Damage::new(&segment.path, 0, "the segments before it are not there").into());
        }
        tail = Some((segment, torn));
    }
    let Some((segment, torn)) = tail else { return Ok(None) };
    let Reading { chain, kept, boot, current, repaired, unverified, .. } = reading;
    Ok(Some(Found {
        first: segments.get(first).copied(),
        segments,
        repaired,
        unverified,
        end: segment.offset,
        torn,
        format: segment.header.oxenfs_journal,
        current,
        next: chain.next,
        sum: chain.sum,
        boot,
        kept,
    }))
}

/// Where the last complete segment is in the list; the oldest counts whether it is complete or not.
fn first_that_counts(dir: &Path, segments: &[u64]) -> Result<Option<usize>, JournalError> {
    let Some(mut first) = segments.len().checked_sub(1) else { return Ok(None) };
    while first > 0 {
        let mut segment = Segment::open(dir, segments[first])?;
        let mut complete = false;
        while let Some(Frame::Good(frame)) = segment.next()? {
            complete |= frame.changes.contains(&Change::Complete);
        }
        if complete {
            break;
        }
        first -= 1;
    }
    Ok(Some(first))
}

struct Reading {
    chain: Chain,
    kept: Kept,
    boot: String,
    /// Whether what was read has the whole state up to where it ends.
    whole: bool,
    current: bool,
    repaired: bool,
    unverified: bool,
}

impl Reading {
    /// Checks that a segment goes on where the one before ended.
    fn begin(
        &mut self,
        segment: &Segment,
        is_first: bool,
        before: impl FnOnce() -> Option<u64>,
    ) -> Result<(), JournalError> {
        let header = &segment.header;
        if header.oxenfs_journal == UNCHAINED {
            self.current = false;
            return Ok(());
        }
        if is_first {
            (self.repaired, self.unverified) = (header.repaired, header.unverified);
            let sum = [header.link.as_bytes(), &NO_SUM].concat();
            self.chain = Chain { next: header.first, sum: sum.first_chunk().copied().unwrap_or(NO_SUM) };
        } else if header.first != self.chain.next || header.link.as_bytes() != link_of(&self.chain.sum) {
            let before = before().map_or_else(String::new, |before| format!(" segment {before} ends, at"));
            let (first, next) = (header.first, self.chain.next);
            return Err(segment.damage(format!("it begins with frame {first}, not where{before} {next}")).into());
        }
        header.boot.clone_into(&mut self.boot);
        Ok(())
    }

    /// Hands over the frames of a segment that check; returns why it stopped there, where that is not its end.
    fn read(&mut self, segment: &mut Segment, believe: &mut Replay<'_>) -> Result<Option<&'static str>, JournalError> {
        self.whole |= segment.is_beginning();
        loop {
            let frame = match segment.next()? {
                None => return Ok(None),
                Some(Frame::Good(frame)) if self.chain.fits(&frame) => frame,
                Some(Frame::Good(_)) => return Ok(Some("a frame is there that does not follow the one before")),
                Some(Frame::Bad) => return Ok(Some("what is there is no frame that oxenfs wrote")),
                Some(Frame::Unknown(what)) => return Err(segment.unknown(what)),
            };
            self.chain.pass(&frame);
            self.kept.note(&frame);
            for change in frame.changes {
                self.whole |= change == Change::Complete;
                if let Change::Boot { boot } = &change {
                    boot.clone_into(&mut self.boot);
                }
                believe(Seen { ordered: self.whole }, change).map_err(|what| segment.damage(what))?;
            }
            segment.pass();
        }
    }

    /// Whether what is behind the frames is what a crash leaves; then it is returned, to be cut off.
    fn judge(
        &self,
        segment: &Segment,
        ended: Option<&'static str>,
        mark: Option<&Mark>,
        is_last: bool,
        boot: &str,
    ) -> Result<Option<Vec<u8>>, JournalError> {
        let what = ended.unwrap_or("behind zeros is something that oxenfs did not write there");
        let format = segment.header.oxenfs_journal;
        let Some(rest) = segment.rest()? else {
            return Err(segment.damage("more lies there than a crash can leave").into());
        };
        let last = self.chain.next - 1;
        let lacks = |upto: u64, was: &str| {
            let missing =
                if upto == last + 1 { format!("frame {upto}") } else { format!("frames {} to {upto}", last + 1) };
            let here = if rest.is_empty() { "the frames end there" } else { what };
            segment.damage(format!("{here}; {missing} had been {was}"))
        };
        if let Some(mark) = mark {
            if mark.flushed > last {
                return Err(lacks(mark.flushed, "flushed").into());
            }
            if mark.boot == boot && mark.written > last {
                return Err(lacks(mark.written, "written").into());
            }
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let torn = is_last && format::begins_frame(&rest, format, self.chain.next, &self.chain.sum);
        // A power loss may leave anything behind the mark; but what is behind a note that the record was opened is older
        // than a flush of all that is before.
        let lost = is_last && format != UNCHAINED && mark.is_some() && self.boot != boot && !was_opened(&rest, format);
        if torn || lost { Ok(Some(rest)) } else { Err(segment.damage(what).into()) }
    }
}

/// Whether whole frames are among what is left of a segment that were written when it had been opened anew.
fn was_opened(rest: &[u8], format: u32) -> bool {
    rest.split_inclusive(|byte| *byte == b'\n').any(|line| {
        // Zeros of a sector that was never written lie in front of it.
        let line = &line[line.iter().position(|byte| *byte != 0).unwrap_or(line.len())..];
        let opened = |change: &Change| matches!(change, Change::Boot { .. });
        matches!(format::decode(line, format), Frame::Good(frame) if frame.changes.iter().any(opened))
    })
}

/// Where the zeros begin that `bytes` end with.
pub(super) fn zeros_from(bytes: &[u8]) -> usize {
    const PAGE: [u8; 4096] = [0; 4096];
    // Whole pages at the speed of memory, in an unoptimized build as well: there is up to a mebibyte of them.
    let mut end = bytes.len();
    while end >= PAGE.len() && bytes[end - PAGE.len()..end] == PAGE {
        end -= PAGE.len();
    }
    bytes[..end].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// What a salvage finds beside the changes.
pub(super) struct Whole {
    pub damage: Vec<Damage>,
    pub chain: Chain,
    pub kept: Kept,
    /// Files in the place of a segment in which nothing is of a record, neither the first line nor any frame.
    pub strangers: Vec<PathBuf>,
}

/// Hands over the changes of every whole frame of every segment in order, with whether it follows the one before.
pub(super) fn salvage(dir: &Path, take: &mut dyn FnMut(bool, Change)) -> Result<Whole, JournalError> {
    let segments = segments(dir).map_err(|source| JournalError::Io { path: dir.to_owned(), source })?;
    let (mut damage, mut chain, mut kept) = (Vec::new(), Chain::START, Kept::default());
    let mut strangers = Vec::new();
    // From the last one on that is complete as far as it can be read, unless it is not whole itself.
    let first = first_that_counts(dir, &segments).ok().flatten().unwrap_or(0);
    for &number in &segments[first.min(segments.len())..] {
        let mut is_ours = true;
        let mut segment = match Segment::open(dir, number) {
            Ok(segment) => segment,
            Err(JournalError::Damaged(found)) => {
                damage.push(*found);
                is_ours = false;
                match Segment::open_past_header(dir, number)? {
                    Some(segment) => segment,
                    None => continue,
                }
            }
            Err(error) => return Err(error),
        };
        let mut follows = true;
        loop {
            match segment.next()? {
                None => match segment.skip_zeros()? {
                    Some(zeros) if zeros > 0 => {
                        damage.push(segment.damage(format!("{zeros} bytes of zeros lie before more of the record")));
                        follows = false;
                        segment.offset += zeros;
                    }
                    _ => break,
                },
                Some(Frame::Good(frame)) => {
                    is_ours = true;
                    follows &= chain.fits(&frame) || chain.next == 1;
                    // A frame that comes twice is older than what came since.
                    if frame.chain.is_none_or(|(number, _)| number >= chain.next) {
                        chain.pass(&frame);
                        kept.note(&frame);
                        frame.changes.into_iter().for_each(|change| take(follows, change));
                    }
                    segment.pass();
                }
                Some(Frame::Unknown(what)) => return Err(segment.unknown(what)),
                Some(Frame::Bad) => {
                    if follows {
                        damage.push(segment.damage("what is there is no frame that oxenfs wrote"));
                    }
                    follows = false;
                    segment.pass();
                }
            }
        }
        if !is_ours && segment.length > 0 {
            strangers.push(segment.path);
        }
    }
    Ok(Whole { damage, chain, kept, strangers })
}

impl Segment {
    /// A segment whose first line is damaged, from the line after.
    fn open_past_header(dir: &Path, number: u64) -> Result<Option<Self>, JournalError> {
        let path = segment_path(dir, number);
        let io = |source| JournalError::Io { path: path.clone(), source };
        let metadata = fs::symlink_metadata(&path).map_err(io)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let reader = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
        let header = Header {
            oxenfs_journal: FORMAT,
            segment: number,
            first: 0,
            link: String::new(),
            boot: String::new(),
            needs: Vec::new(),
            repaired: false,
            unverified: false,
        };
        // The damaged line is the first that is passed over.
        Ok(Some(Self { path, number, reader, length: metadata.len(), header, offset: 0, line: Vec::new() }))
    }

    /// Passes zeros; how many there were before something else, `None` if nothing else comes.
    fn skip_zeros(&mut self) -> Result<Option<u64>, JournalError> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        let mut passed = 0;
        loop {
            let buffer = self.reader.fill_buf().map_err(io)?;
            if buffer.is_empty() || passed > LONGEST_BYTES {
                return Ok(None);
            }
            let zeros = buffer.iter().position(|byte| *byte != 0);
            let step = zeros.unwrap_or(buffer.len());
            passed += step as u64;
            self.reader.consume(step);
            if zeros.is_some() {
                return Ok(Some(passed));
            }
        }
    }
}
