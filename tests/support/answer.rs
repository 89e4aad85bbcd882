//! The answers of the scripted server: what is sent, and how.

use std::sync::Arc;
use std::time::Duration;

/// The length of an endless body.
pub const GIGABYTE: usize = 1 << 30;

/// What a path answers, and how.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Arc<[u8]>,
    framing: Framing,
    pub(super) delivery: Delivery,
    pub(super) delay: Duration,
}

/// How the end of the body is marked.
#[derive(Clone, Copy)]
enum Framing {
    Length,
    Chunked,
    /// It ends with the connection.
    Close,
    /// The bytes are the whole answer, head included.
    None,
}

#[derive(Clone, Copy)]
pub enum Delivery {
    Whole,
    /// One byte of the body each time.
    Dripping(Duration),
    /// The connection is closed after so many bytes of the body.
    CutAfter(usize),
    /// The connection is reset as soon as the request has come.
    Reset,
    /// Nothing comes until the script changes.
    Never,
    /// Nothing comes, whatever happens.
    Lost,
    /// The body is followed by a gigabyte of the letter a.
    Flood,
    /// The body is followed by what later answers add to it. It ends when an answer does not.
    Growing,
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Answer {
            status,
            headers: vec![("Content-Type".into(), content_type.into())],
            body: body.as_ref().into(),
            framing: Framing::Length,
            delivery: Delivery::Whole,
            delay: Duration::ZERO,
        }
    }

    pub fn json(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, "application/json; charset=utf-8", body)
    }

    /// An exposition, as a llama-server sends it: with the start time of the process in a header.
    pub fn exposition(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, "text/plain; version=0.0.4", body)
            .header("Process-Start-Time-Unix", "8034772104")
    }

    pub fn html() -> Self {
        Self::new(
            200,
            "text/html",
            "<!doctype html><html><body><h1>It works!</h1></body></html>",
        )
    }

    /// An error, as a llama-server words it.
    pub fn error(status: u16, message: &str) -> Self {
        let error = serde_json::json!({"error": {"code": status, "message": message}});
        Self::new(status, "application/json; charset=utf-8", error.to_string())
    }

    /// These bytes, head included, and then the end of the connection.
    pub fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Answer {
            framing: Framing::None,
            ..Self::json(bytes)
        }
    }

    /// A reset (RST) in place of an answer.
    pub fn reset() -> Self {
        Answer {
            delivery: Delivery::Reset,
            ..Self::json("")
        }
    }

    /// No answer before the script changes; then the answer that the script has by then.
    pub fn never() -> Self {
        Answer {
            delivery: Delivery::Never,
            ..Self::json("")
        }
    }

    /// No answer, not even when the script changes: as if the request were lost on its way.
    pub fn lost() -> Self {
        Answer {
            delivery: Delivery::Lost,
            ..Self::json("")
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn delayed(self, delay: Duration) -> Self {
        Answer { delay, ..self }
    }

    /// The body one byte at a time, until the script changes: then the rest at once.
    pub fn dripping(self, pause: Duration) -> Self {
        Answer {
            delivery: Delivery::Dripping(pause),
            ..self
        }
    }

    /// A body without end: what later answers of the script add to it follows. The connection is
    /// closed when an answer does not begin like the one before.
    pub fn growing(self) -> Self {
        Answer {
            framing: Framing::Close,
            delivery: Delivery::Growing,
            ..self
        }
    }

    /// All of the head, and a part of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        Answer {
            delivery: Delivery::CutAfter(bytes),
            ..self
        }
    }

    pub fn chunked(self) -> Self {
        Answer {
            framing: Framing::Chunked,
            ..self
        }
    }

    /// Without a length: the body ends with the connection.
    pub fn until_closed(self) -> Self {
        Answer {
            framing: Framing::Close,
            ..self
        }
    }

    /// In HTTP/1.0: the body ends with the connection.
    pub fn http_1_0(self) -> Self {
        let bytes = Answer {
            framing: Framing::Close,
            ..self
        }
        .bytes();
        let bytes = [b"HTTP/1.0", &bytes[b"HTTP/1.1".len()..]].concat();
        Self::raw(bytes)
    }

    /// The body goes on for a gigabyte.
    pub fn and_a_gigabyte_more(self) -> Self {
        Answer {
            delivery: Delivery::Flood,
            ..self
        }
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Scripted\r\nServer: llama.cpp\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing {
            Framing::Length => {
                let length = self.body.len()
                    + if let Delivery::Flood = self.delivery {
                        GIGABYTE
                    } else {
                        0
                    };
                if self.status != 204 {
                    head += &format!("Content-Length: {length}\r\n");
                }
            }
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::Close => head += "Connection: close\r\n",
            Framing::None => return Vec::new(),
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// A part of the body as it is sent.
    pub fn framed(&self, part: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Chunked => {
                [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
            }
            _ => part.to_vec(),
        }
    }

    /// The whole answer as it is sent. A chunked one has chunks of 100 bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        if let Framing::Chunked = self.framing {
            self.body
                .chunks(100)
                .for_each(|part| bytes.extend(self.framed(part)));
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    pub fn closes(&self) -> bool {
        matches!(self.framing, Framing::Close | Framing::None)
            || self.headers.iter().any(|(name, value)| {
                name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
            })
    }
}
