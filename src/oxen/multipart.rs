//! Multipart forms as the server reads them: names escaped its way, lengths known, contents streamed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::body::{Body, Segment};

/// Below this a gzip header and a second pass cost more than they save.
const GZIP_FROM_BYTES: u64 = 4 << 10;
/// Above this a part is never compressed: the server inflates at most 10 MiB a part, and the compressed bytes are held
/// in memory here.
const GZIP_TO_BYTES: u64 = 8 << 20;
/// How much of a file tells whether the rest will shrink.
const SAMPLE_BYTES: u64 = 16 << 10;

/// The media type of plain content. Never the file's own: `application/gzip` would make the server inflate it.
pub(super) const PLAIN: &str = "application/octet-stream";
/// The media type of content that the server inflates.
pub(super) const GZIP: &str = "application/gzip";

/// A form under construction.
pub(super) struct Form {
    boundary: String,
    segments: Vec<Segment>,
    /// Text that was not yet made a segment.
    text: Vec<u8>,
}

impl Form {
    /// An empty one, with a boundary that no content holds (128 random bits).
    pub(super) fn new() -> Self {
        let boundary = format!("{:032x}", fastrand::u128(..));
        Self { boundary, segments: Vec::new(), text: Vec::new() }
    }

    /// Adds a text field.
    pub(super) fn field(&mut self, name: &str, value: &[u8]) {
        self.text.extend_from_slice(
            format!("--{}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n", self.boundary).as_bytes(),
        );
        self.text.extend_from_slice(value);
        self.text.extend_from_slice(b"\r\n");
    }

    /// Adds a file. `filename` is already [`quoted`].
    pub(super) fn file(&mut self, filename: &str, media_type: &str, content: Segment) {
        self.text.extend_from_slice(
            format!(
                "--{}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\
                 Content-Type: {media_type}\r\n\r\n",
                self.boundary
            )
            .as_bytes(),
        );
        self.flush();
        self.segments.push(content);
        self.text.extend_from_slice(b"\r\n");
    }

    /// The form's media type and body.
    pub(super) fn finish(mut self) -> (String, Body) {
        self.text.extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.flush();
        (format!("multipart/form-data; boundary={}", self.boundary), Body::new(self.segments))
    }

    fn flush(&mut self) {
        self.segments.push(Segment::Bytes(std::mem::take(&mut self.text).into()));
    }
}

/// `name` as the inside of a quoted string: `"` and `\` with a backslash, everything else as it is (oxen-server 0.65.2,
/// tried: percent-encoding is taken literally). `None` where a header line cannot hold it: a line break is refused
/// with 400 (tried), and no HTTP parser lets other control characters through.
pub(super) fn quoted(name: &str) -> Option<String> {
    let mut quoted = String::with_capacity(name.len());
    for char in name.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\0'..'\x20' | '\x7f' => return None,
            _ => quoted.push(char),
        }
    }
    Some(quoted)
}

/// `size` bytes of `file` compressed, where that pays. Blocks.
///
/// # Errors
/// What reading gives; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
pub(super) fn compressed(file: &File, size: u64) -> io::Result<Option<Bytes>> {
    if !(GZIP_FROM_BYTES..=GZIP_TO_BYTES).contains(&size) {
        return Ok(None);
    }
    // From the middle: headers of media files shrink while the rest does not.
    let sampled = size.min(SAMPLE_BYTES);
    let mut sample = vec![0; sampled as usize];
    file.read_exact_at(&mut sample, (size - sampled) / 2)?;
    if !pays(gzip(&sample)?.len(), sample.len()) {
        return Ok(None);
    }
    let mut content = vec![0; size as usize];
    file.read_exact_at(&mut content, 0)?;
    let gzipped = gzip(&content)?;
    Ok(pays(gzipped.len(), content.len()).then(|| gzipped.into()))
}

/// A fifth must go, or the processor time is better spent sending.
fn pays(compressed: usize, plain: usize) -> bool {
    compressed <= plain - plain / 5
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_with_backslashes_and_nothing_else() {
        assert_eq!(quoted("a/b c%22é😀.txt").as_deref(), Some("a/b c%22é😀.txt"));
        assert_eq!(quoted(r#"say "hi"\now"#).as_deref(), Some(r#"say \"hi\"\\now"#));
        assert_eq!(quoted("a;b='c'&d#?").as_deref(), Some("a;b='c'&d#?"));
        for bad in ["a\nb", "a\rb", "a\tb", "\x01", "\x7f"] {
            assert_eq!(quoted(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_form_is_what_its_length_says() {
        let mut form = Form::new();
        form.field("name", b"bessie");
        form.file("x.txt", PLAIN, Segment::Bytes(Bytes::from_static(b"content")));
        let boundary = form.boundary.clone();
        let (media_type, body) = form.finish();
        assert_eq!(media_type, format!("multipart/form-data; boundary={boundary}"));
        let expected = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nbessie\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\
             Content-Type: application/octet-stream\r\n\r\ncontent\r\n--{boundary}--\r\n"
        );
        assert_eq!(body.len(), expected.len() as u64);
    }

    #[test]
    fn only_what_shrinks_is_compressed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&b"all work and no play ".repeat(1000)).unwrap();
        let gzipped = compressed(&file, 21_000).unwrap().unwrap();
        assert!(gzipped.len() < 2000);
        assert!(compressed(&file, 100).unwrap().is_none());
        assert!(compressed(&file, GZIP_TO_BYTES + 1).unwrap().is_none());
        assert_eq!(compressed(&file, 30_000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let mut noise = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
        noise.write_all(&bytes).unwrap();
        assert!(compressed(&noise, 100_000).unwrap().is_none());
    }
}
