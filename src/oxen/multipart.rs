//! Multipart bodies of exact length, streamed from disk.
//!
//! Built by hand because of the file names: the server takes a quoted string with backslash escapes, and percent
//! signs literally (oxen-server 0.65.2, tried), where HTTP libraries encode in their own ways.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use reqwest::Body;

/// Bytes read from a file at a time.
const CHUNK_BYTES: u64 = 256 << 10;
/// A file up to this long is read on the spot: less than a thread switch costs.
const INLINE_BYTES: u64 = 64 << 10;

enum Piece {
    Bytes(Bytes),
    File(Arc<File>, u64, u64),
}

/// A body under construction.
pub(super) struct Form {
    boundary: String,
    pieces: Vec<Piece>,
    length: u64,
}

impl Form {
    pub(super) fn new() -> Self {
        // 128 random bits: content that holds it by chance does not exist.
        let boundary = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Self { boundary, pieces: Vec::new(), length: 0 }
    }

    fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.length += bytes.len() as u64;
        self.pieces.push(Piece::Bytes(bytes));
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        self.push(format!("--{}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n", self.boundary));
    }

    fn header(&mut self, field: &str, filename: &str) {
        self.push(format!(
            "--{}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            self.boundary,
            escape(filename)
        ));
    }

    pub(super) fn bytes(&mut self, field: &str, filename: &str, content: Vec<u8>) {
        self.header(field, filename);
        self.push(content);
        self.push("\r\n");
    }

    /// The first `size` bytes of a file that nobody changes meanwhile.
    pub(super) fn file(&mut self, field: &str, filename: &str, file: Arc<File>, size: u64) {
        self.header(field, filename);
        self.length += size;
        self.pieces.push(Piece::File(file, 0, size));
        self.push("\r\n");
    }

    /// Content type, length in bytes, and body. Without the length as a header it would go out in chunks.
    pub(super) fn finish(mut self) -> (String, u64, Body) {
        self.push(format!("--{}--\r\n", self.boundary));
        let content_type = format!("multipart/form-data; boundary={}", self.boundary);
        let length = self.length;
        let pieces = stream::iter(self.pieces).flat_map(|piece| match piece {
            Piece::Bytes(bytes) => stream::once(async { Ok(bytes) }).left_stream(),
            Piece::File(file, from, size) => file_stream(file, from, size).right_stream(),
        });
        (content_type, length, Body::wrap_stream(pieces))
    }
}

/// `size` bytes of a file from `from` on. A file that is shorter breaks the request off: the server must not take it.
pub(super) fn file_stream(file: Arc<File>, from: u64, size: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((file, from, size), |(file, at, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let take = left.min(CHUNK_BYTES);
        let read = move |file: &File| {
            let mut buffer = vec![0; take as usize];
            file.read_exact_at(&mut buffer, at).map(|()| Bytes::from(buffer))
        };
        let bytes = if take <= INLINE_BYTES {
            read(&file)?
        } else {
            let file = file.clone();
            tokio::task::spawn_blocking(move || read(&file)).await.map_err(io::Error::other)??
        };
        Ok(Some((bytes, (file, at + take, left - take))))
    })
}

fn escape(filename: &str) -> String {
    filename.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn the_body_has_the_length_it_announces() {
        let file = tempfile::tempfile().unwrap();
        let content = vec![7; 300_000];
        file.write_all_at(&content, 0).unwrap();
        let mut form = Form::new();
        form.field("name", "Bessie");
        form.file("file", "d\u{fc}r/a \"b\" \\c%20.txt", Arc::new(file), content.len() as u64);
        form.bytes("file", "empty", Vec::new());
        let (content_type, length, body) = form.finish();
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len() as u64, length);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("filename=\"d\u{fc}r/a \\\"b\\\" \\\\c%20.txt\"\r\n"));
        let boundary = content_type.split_once("boundary=").unwrap().1;
        assert!(text.ends_with(&format!("--{boundary}--\r\n")));
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_breaks_the_body_off() {
        let mut form = Form::new();
        form.file("file", "a", Arc::new(tempfile::tempfile().unwrap()), 10);
        assert!(form.finish().2.collect().await.is_err());
    }
}
