//! `multipart/form-data` bodies, part by part as they arrive.
//!
//! Written here because names of parts are the protocol's paths, and Oxen servers read them their own way: a backslash
//! escapes `"` and `\` in the quoted string, percent-encoding stays as it is.

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header;
use bytes::{Buf, BytesMut};
use futures_util::{Stream, StreamExt};
use memchr::memmem::Finder;

/// The longest head of one part. Names are at most some thousand bytes; the rest is a content type.
const HEAD_BYTES: usize = 64 * 1024;

/// Why a body is no form.
#[derive(Debug, thiserror::Error)]
pub(super) enum MultipartError {
    /// The request's content type is another.
    #[error("Parsed Content-Type did not have 'multipart' top-level media type")]
    NotMultipart,
    /// No or an impossible boundary.
    #[error("Multipart boundary is not found")]
    NoBoundary,
    /// The body ends before its last boundary.
    #[error("Multipart stream is incomplete")]
    Incomplete,
    /// A part's head is no list of headers.
    #[error("Error during header parsing: {0}")]
    Head(&'static str),
    /// The connection broke.
    #[error("Payload error: {0}")]
    Body(String),
}

/// A part's headers, as far as they matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Head {
    /// The field's name.
    pub(super) name: Option<String>,
    /// The file's name, unescaped.
    pub(super) filename: Option<String>,
    /// Whether the content is to be inflated.
    pub(super) gzip: bool,
}

/// A form being read from `stream`.
pub(super) struct Multipart<S> {
    stream: S,
    /// Received and not yet handed out.
    buffer: BytesMut,
    /// `CR LF -- boundary`.
    delimiter: Finder<'static>,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first boundary.
    Preamble,
    /// In a part's content.
    Content,
    /// Right behind a boundary.
    Boundary,
    /// Behind the last boundary.
    End,
}

/// The boundary that `headers` announce.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, MultipartError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (essence, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    if !essence.trim().to_ascii_lowercase().starts_with("multipart/") {
        return Err(MultipartError::NotMultipart);
    }
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    boundary.filter(|text| !text.is_empty()).ok_or(MultipartError::NoBoundary)
}

impl<S, E> Multipart<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    pub(super) fn new(stream: S, boundary: &str) -> Self {
        // The first boundary need not follow a line end; with one put before the body, all are found alike.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        Self { stream, buffer, delimiter, at: At::Preamble }
    }

    /// The next part's head; `None` behind the last part. What is left of the part before is skipped.
    pub(super) async fn next_part(&mut self) -> Result<Option<Head>, MultipartError> {
        while matches!(self.at, At::Preamble | At::Content) {
            self.advance().await?;
        }
        if self.at == At::End {
            return Ok(None);
        }
        // `--` ends the form, a line end begins a part; blanks may stand before either.
        loop {
            match self.buffer.first() {
                Some(b' ' | b'\t') => self.buffer.advance(1),
                Some(_) if self.buffer.len() >= 2 => break,
                _ => self.receive().await?,
            }
        }
        match &self.buffer[..2] {
            b"--" => {
                self.at = At::End;
                return Ok(None);
            }
            b"\r\n" => {}
            _ => return Err(MultipartError::Head("no line end behind a boundary")),
        }
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > HEAD_BYTES {
                return Err(MultipartError::Head("too long"));
            }
            self.receive().await?;
        };
        let head = self.buffer.split_to(end);
        self.buffer.advance(4);
        self.at = At::Content;
        Head::parse(&head).map(Some)
    }

    /// The next bytes of the current part; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, MultipartError> {
        if self.at != At::Content {
            return Ok(None);
        }
        loop {
            let bytes = self.advance().await?;
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if self.at != At::Content {
                return Ok(None);
            }
        }
    }

    /// Takes what certainly lies before the next boundary, perhaps nothing; moves behind the boundary when it is there.
    async fn advance(&mut self) -> Result<Bytes, MultipartError> {
        if let Some(start) = self.delimiter.find(&self.buffer) {
            let bytes = self.buffer.split_to(start).freeze();
            self.buffer.advance(self.delimiter.needle().len());
            self.at = At::Boundary;
            return Ok(bytes);
        }
        // Its start may be the last thing received.
        let certain = self.buffer.len().saturating_sub(self.delimiter.needle().len() - 1);
        if certain == 0 {
            self.receive().await?;
        }
        Ok(self.buffer.split_to(certain).freeze())
    }

    async fn receive(&mut self) -> Result<(), MultipartError> {
        match self.stream.next().await {
            Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
            Some(Err(error)) => return Err(MultipartError::Body(error.to_string())),
            None => return Err(MultipartError::Incomplete),
        }
        Ok(())
    }
}

impl Head {
    /// Reads header lines, each begun by a line end but the first of them.
    fn parse(head: &[u8]) -> Result<Self, MultipartError> {
        let text = std::str::from_utf8(head).map_err(|_| MultipartError::Head("not UTF-8"))?;
        let mut parsed = Self::default();
        for line in text.split("\r\n").filter(|line| !line.is_empty()) {
            // A line end that is not one of HTTP's would let a name pass for a header of its own.
            if line.contains(['\n', '\r', '\0']) {
                return Err(MultipartError::Head("control character"));
            }
            let (name, value) = line.split_once(':').ok_or(MultipartError::Head("no colon"))?;
            if name.eq_ignore_ascii_case("content-disposition") {
                parsed.read_disposition(value);
            } else if name.eq_ignore_ascii_case("content-type") {
                let essence = value.split(';').next().unwrap_or_default();
                parsed.gzip = essence.trim().eq_ignore_ascii_case("application/gzip");
            }
        }
        Ok(parsed)
    }

    /// `form-data; name="file"; filename="a \"quoted\" name"`.
    fn read_disposition(&mut self, value: &str) {
        let Some((_, mut rest)) = value.split_once(';') else {
            return;
        };
        while let Some((name, after)) = rest.split_once('=') {
            let (text, behind) = parameter_value(after.trim_start());
            match name.trim().to_ascii_lowercase().as_str() {
                "name" => self.name = Some(text),
                "filename" => self.filename = Some(text),
                _ => {}
            }
            rest = behind.split_once(';').map_or("", |(_, next)| next);
        }
    }
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const FORM: &str = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhello\r\n--C\r\n\
        --B\r\ncontent-disposition: form-data; name=\"file[]\"; filename=\"b\"\r\nContent-Type: application/gzip\r\n\r\n\
        \r\n--B--\r\n";

    type Chunks = futures_util::stream::Iter<std::vec::IntoIter<Result<Bytes, Infallible>>>;

    fn form(body: &[u8], chunk: usize) -> Multipart<Chunks> {
        let chunks: Vec<_> = body.chunks(chunk).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        Multipart::new(futures_util::stream::iter(chunks), "B")
    }

    async fn read(mut form: Multipart<Chunks>) -> Result<Vec<(Head, Vec<u8>)>, MultipartError> {
        let mut parts = Vec::new();
        while let Some(head) = form.next_part().await? {
            let mut content = Vec::new();
            while let Some(chunk) = form.chunk().await? {
                content.extend_from_slice(&chunk);
            }
            parts.push((head, content));
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn parts_are_the_same_however_the_body_is_cut_up() {
        for chunk in 1..FORM.len() {
            let parts = read(form(FORM.as_bytes(), chunk)).await.unwrap();
            assert_eq!(parts.len(), 2, "in chunks of {chunk}");
            assert_eq!(parts[0].0.filename.as_deref(), Some("a.txt"));
            assert_eq!(parts[0].1, b"hello\r\n--C");
            assert!(!parts[0].0.gzip);
            assert_eq!(parts[1].0.name.as_deref(), Some("file[]"));
            assert_eq!(parts[1].1, b"");
            assert!(parts[1].0.gzip);
        }
    }

    #[tokio::test]
    async fn a_body_without_its_last_boundary_is_incomplete() {
        for length in 0..FORM.len() - "--\r\n".len() {
            let cut = read(form(&FORM.as_bytes()[..length], 7)).await;
            assert!(matches!(cut, Err(MultipartError::Incomplete)), "{length} bytes: {cut:?}");
        }
    }

    #[tokio::test]
    async fn parts_not_read_are_skipped() {
        let mut form = form(FORM.as_bytes(), 5);
        assert!(form.next_part().await.unwrap().is_some());
        let second = form.next_part().await.unwrap().unwrap();
        assert_eq!(second.filename.as_deref(), Some("b"));
        assert!(form.next_part().await.unwrap().is_none());
        assert!(form.next_part().await.unwrap().is_none());
    }

    fn filename(disposition: &str) -> Option<String> {
        Head::parse(format!("Content-Disposition: {disposition}").as_bytes()).unwrap().filename
    }

    #[test]
    fn names_are_unescaped_but_not_percent_decoded() {
        let name = |quoted: &str| filename(&format!("form-data; name=\"file\"; filename=\"{quoted}\""));
        assert_eq!(name(r#"a \"b\" c"#).as_deref(), Some(r#"a "b" c"#));
        assert_eq!(name(r"back\\slash").as_deref(), Some(r"back\slash"));
        assert_eq!(name("100%22 %2F").as_deref(), Some("100%22 %2F"));
        assert_eq!(name("a;b=c.txt").as_deref(), Some("a;b=c.txt"));
        assert_eq!(name("ünï/cödé").as_deref(), Some("ünï/cödé"));
        assert_eq!(filename("form-data; filename=plain.txt; name=file").as_deref(), Some("plain.txt"));
        assert_eq!(filename("form-data; name=\"file\""), None);
    }

    #[test]
    fn a_line_end_in_a_name_is_refused() {
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a\nb\"";
        assert!(Head::parse(head.as_bytes()).is_err());
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a\r\nb\"";
        assert!(Head::parse(head.as_bytes()).is_err());
        assert!(Head::parse(b"Content-Disposition: form-data; filename=\"\xff\"").is_err());
    }

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        let of = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            boundary(&headers)
        };
        assert_eq!(of("multipart/form-data; boundary=abc").unwrap(), "abc");
        assert_eq!(of("multipart/form-data; charset=x; Boundary=\"a b\"").unwrap(), "a b");
        assert!(matches!(of("application/json"), Err(MultipartError::NotMultipart)));
        assert!(matches!(of("multipart/form-data"), Err(MultipartError::NoBoundary)));
    }
}
