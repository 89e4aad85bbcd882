//! An HTTP server that follows a script: every path answers as it was told to, in the manner it
//! was told to, and what it was asked is on record. The script can be changed while it runs.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const GIGABYTE: usize = 1 << 30;

/// What a path answers, and how.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<[u8]>,
    framing: Framing,
    manner: Manner,
    delay: Duration,
}

/// How the reader is told where the body ends.
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
enum Manner {
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
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Answer {
            status,
            headers: vec![("Content-Type".into(), content_type.into())],
            body: body.as_ref().into(),
            framing: Framing::Length,
            manner: Manner::Whole,
            delay: Duration::ZERO,
        }
    }

    pub fn json(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, "application/json; charset=utf-8", body)
    }

    /// An exposition, as a llama-server sends it: with the identity of its life in a header.
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
            manner: Manner::Reset,
            ..Self::json("")
        }
    }

    /// No answer before the script changes; then what the script says by then.
    pub fn never() -> Self {
        Answer {
            manner: Manner::Never,
            ..Self::json("")
        }
    }

    /// No answer, not even when the script changes: as if what was sent had got lost on its way.
    pub fn lost() -> Self {
        Answer {
            manner: Manner::Lost,
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
            manner: Manner::Dripping(pause),
            ..self
        }
    }

    /// All of the head, and a part of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        Answer {
            manner: Manner::CutAfter(bytes),
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

    /// As servers of the last century say it: the body ends with the connection, which is not kept.
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
            manner: Manner::Flood,
            ..self
        }
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Scripted\r\nServer: llama.cpp\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing {
            Framing::Length => {
                let length = self.body.len()
                    + if let Manner::Flood = self.manner {
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

    /// A part of the body as it goes over the wire.
    fn framed(&self, part: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Chunked => {
                [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
            }
            _ => part.to_vec(),
        }
    }

    /// The whole answer as it goes over the wire. A chunked one is sent in chunks of 100 bytes.
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

    fn closes(&self) -> bool {
        matches!(self.framing, Framing::Close | Framing::None)
            || self.headers.iter().any(|(name, value)| {
                name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
            })
    }
}

/// A request on record.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    /// Which of the server's connections it came over, counted from 1.
    pub connection: usize,
    pub at: Instant,
    pub ending: Ending,
    /// How much of the gigabyte the system had taken.
    pub flooded: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// It still waits for its answer.
    Waiting,
    /// It was answered (or refused) as the script has it.
    Answered(Instant),
    /// The asker hung up before it had the answer.
    HungUp(Instant),
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let same = |(have, _): &&(String, String)| have.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .find(same)
            .map(|(_, value)| value.as_str())
    }

    pub fn is_waiting(&self) -> bool {
        self.ending == Ending::Waiting
    }

    pub fn was_hung_up(&self) -> bool {
        matches!(self.ending, Ending::HungUp(_))
    }
}

#[derive(Default)]
struct Shared {
    /// The answer of each path, and the edition of the script that it is from.
    script: Mutex<HashMap<String, (Answer, usize)>>,
    /// The answer of every path that the script has not.
    elsewhere: Mutex<Option<Answer>>,
    /// The answer of every path, in place of the script.
    cover: Mutex<Option<Answer>>,
    edition: AtomicUsize,
    record: Mutex<Vec<Request>>,
    connections: AtomicUsize,
}

/// One time that the server listens; `stop` ends it.
struct Life {
    over: Arc<AtomicBool>,
    open: Open,
    accepting: thread::JoinHandle<()>,
}

/// The connections that are open, by number.
type Open = Arc<Mutex<HashMap<usize, Arc<TcpStream>>>>;

pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    life: Mutex<Option<Life>>,
}

impl Server {
    /// A server that answers 404 to everything.
    pub fn start() -> Self {
        Self::start_at(own_address().into())
    }

    /// The same at an address of the test's choice, and a port of the system's.
    pub fn start_at(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let life = Mutex::new(Some(live(listener, shared.clone())));
        Server {
            address,
            shared,
            life,
        }
    }

    /// Refuses connections from now on, and ends those it has.
    pub fn stop(&self) {
        let Some(life) = self.life.lock().unwrap().take() else {
            return;
        };
        life.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        life.accepting.join().unwrap();
        for (_, stream) in life.open.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again where it listened before.
    pub fn start_again(&self) {
        let mut life = self.life.lock().unwrap();
        assert!(life.is_none(), "it was not stopped");
        let mut listener = None;
        super::eventually("the port is free again", || {
            listener = TcpListener::bind(self.address).ok();
            listener.is_some()
        });
        *life = Some(live(listener.unwrap(), self.shared.clone()));
    }

    /// A server stopped and forgotten: an address where nobody listens.
    pub fn nobody() -> Self {
        let server = Self::start();
        server.stop();
        server
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, and for questions that wait, `path` answers so. A path may have a query: then
    /// only that.
    pub fn answer(&self, path: &str, answer: Answer) -> &Self {
        let edition = self.shared.edition.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared
            .script
            .lock()
            .unwrap()
            .insert(path.to_owned(), (answer, edition));
        self
    }

    /// From now on every path that has no answer of its own answers so.
    pub fn answer_elsewhere(&self, answer: Answer) -> &Self {
        *self.shared.elsewhere.lock().unwrap() = Some(answer);
        self
    }

    /// From now on every path answers so, as a proxy before a dead server does.
    pub fn cover(&self, answer: Answer) -> &Self {
        *self.shared.cover.lock().unwrap() = Some(answer);
        self
    }

    /// From now on every path answers by the script again.
    pub fn uncover(&self) -> &Self {
        *self.shared.cover.lock().unwrap() = None;
        self
    }

    /// From now on `path` is not found.
    pub fn without(&self, path: &str) -> &Self {
        self.answer(path, Answer::error(404, "File Not Found"))
    }

    /// What `path` answers at present.
    pub fn script(&self, path: &str) -> Answer {
        self.shared.answer(path).0
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.life
            .lock()
            .unwrap()
            .as_ref()
            .map_or(0, |life| life.open.lock().unwrap().len())
    }

    /// Every request since the start.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.record.lock().unwrap().clone()
    }

    pub fn requests_to(&self, path: &str) -> Vec<Request> {
        self.requests()
            .into_iter()
            .filter(|request| request.path == path)
            .collect()
    }

    pub fn count(&self, path: &str) -> usize {
        self.requests_to(path).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn answer(&self, path: &str) -> (Answer, usize) {
        if let Some(cover) = self.cover.lock().unwrap().clone() {
            return (cover, 0);
        }
        if let Some(answer) = self.script.lock().unwrap().get(path) {
            return answer.clone();
        }
        let elsewhere = self.elsewhere.lock().unwrap().clone();
        let not_found = || Answer::error(404, "File Not Found");
        (elsewhere.unwrap_or_else(not_found), 0)
    }

    /// What the request is scripted as: its path with the query, where there is such an entry.
    fn scripted(&self, request: &Request) -> String {
        let target = format!("{}?{}", request.path, request.query);
        match self.script.lock().unwrap().contains_key(&target) {
            true => target,
            false => request.path.clone(),
        }
    }

    fn note(&self, index: usize, change: impl FnOnce(&mut Request)) {
        change(&mut self.record.lock().unwrap()[index]);
    }
}

/// A loopback address of which each server has its own, where there are many: then nobody else
/// takes the port of a server that is stopped for a while.
fn own_address() -> Ipv4Addr {
    static SERVERS: AtomicUsize = AtomicUsize::new(0);
    if cfg!(target_os = "linux") {
        let number = SERVERS.fetch_add(1, Ordering::SeqCst);
        let byte = |number: usize| (number % 250) as u8 + 1;
        Ipv4Addr::new(
            127,
            byte(std::process::id() as usize),
            byte(number / 250),
            byte(number),
        )
    } else {
        Ipv4Addr::LOCALHOST
    }
}

fn live(listener: TcpListener, shared: Arc<Shared>) -> Life {
    let over = Arc::new(AtomicBool::new(false));
    let open = Open::default();
    let accepting = thread::spawn({
        let (over, open) = (over.clone(), open.clone());
        move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let connection = Connection {
                    number: shared.connections.fetch_add(1, Ordering::SeqCst) + 1,
                    stream: Arc::new(stream),
                    shared: shared.clone(),
                    open: open.clone(),
                    over: over.clone(),
                };
                open.lock()
                    .unwrap()
                    .insert(connection.number, connection.stream.clone());
                thread::spawn(move || connection.serve());
            }
        }
    });
    Life {
        over,
        open,
        accepting,
    }
}

struct Connection {
    number: usize,
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
    open: Open,
    over: Arc<AtomicBool>,
}

/// What becomes of a connection after an answer.
enum After {
    KeepAlive,
    Close,
    /// Close it with the request unread, which the system turns into a reset.
    Reset,
}

/// Why a held question is held no longer.
#[derive(PartialEq)]
enum Held {
    LongEnough,
    ScriptChanged,
    HungUp,
}

impl Connection {
    fn serve(self) {
        let _ = self.stream.set_nodelay(true);
        let _ = self.stream.set_write_timeout(Some(Duration::from_secs(10)));
        while let Some((request, length)) = peek_request(&self.stream, self.number) {
            let path = self.shared.scripted(&request);
            let index = {
                let mut record = self.shared.record.lock().unwrap();
                record.push(request);
                record.len() - 1
            };
            let after = self.play(&path, length, index).unwrap_or(After::Close);
            let now = Instant::now();
            self.shared.note(index, |request| {
                if request.is_waiting() {
                    request.ending = Ending::Answered(now);
                }
            });
            match after {
                After::KeepAlive => {}
                After::Close => break,
                After::Reset => {
                    self.open.lock().unwrap().remove(&self.number);
                    return;
                }
            }
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        self.open.lock().unwrap().remove(&self.number);
    }

    /// Plays the answer of `path` to the request of `length` bytes that lies unread.
    fn play(&self, path: &str, length: usize, index: usize) -> io::Result<After> {
        let mut stream = &*self.stream;
        let (mut answer, mut edition) = self.shared.answer(path);
        match answer.manner {
            Manner::Reset => return Ok(After::Reset),
            _ => stream.read_exact(&mut vec![0; length])?,
        }
        while let Manner::Never | Manner::Lost = answer.manner {
            if self.hold(path, edition, None) == Held::HungUp {
                return Ok(self.hung_up(index));
            }
            let lost = matches!(answer.manner, Manner::Lost);
            let (next, now) = self.shared.answer(path);
            edition = now;
            if !lost {
                answer = next;
            }
        }
        if answer.delay > Duration::ZERO
            && self.hold(path, edition, Some(answer.delay)) == Held::HungUp
        {
            return Ok(self.hung_up(index));
        }
        match answer.manner {
            Manner::Dripping(pause) => {
                stream.write_all(&answer.head())?;
                let mut body = &answer.body[..];
                while let [first, rest @ ..] = body {
                    stream.write_all(&[*first])?;
                    body = rest;
                    match self.hold(path, edition, Some(pause)) {
                        Held::LongEnough => {}
                        Held::HungUp => return Ok(self.hung_up(index)),
                        Held::ScriptChanged => {
                            stream.write_all(body)?;
                            break;
                        }
                    }
                }
            }
            Manner::CutAfter(bytes) => {
                stream.write_all(&answer.head())?;
                stream.write_all(&answer.body[..bytes.min(answer.body.len())])?;
                return Ok(After::Close);
            }
            Manner::Flood => return self.flood(&answer, index),
            // In one write, so that no client can be blamed for reading it in parts.
            _ => stream.write_all(&answer.bytes())?,
        }
        Ok(if answer.closes() {
            After::Close
        } else {
            After::KeepAlive
        })
    }

    fn flood(&self, answer: &Answer, index: usize) -> io::Result<After> {
        let mut stream = &*self.stream;
        let part = vec![b'a'; 1 << 16];
        stream.write_all(&answer.head())?;
        stream.write_all(&answer.framed(&answer.body))?;
        let framed = answer.framed(&part);
        for sent in (0..GIGABYTE).step_by(part.len()) {
            self.shared.note(index, |request| request.flooded = sent);
            if stream.write_all(&framed).is_err() {
                return Ok(self.hung_up(index));
            }
        }
        Ok(After::Close)
    }

    /// Waits for the script of `path` to change, for the asker to hang up, or for `limit`.
    fn hold(&self, path: &str, edition: usize, limit: Option<Duration>) -> Held {
        let end = limit.map(|limit| Instant::now() + limit);
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(2)));
        let held = loop {
            if self.over.load(Ordering::SeqCst) || is_ended(&self.stream) {
                break Held::HungUp;
            }
            if self.shared.answer(path).1 != edition {
                break Held::ScriptChanged;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                break Held::LongEnough;
            }
        };
        let _ = self.stream.set_read_timeout(None);
        held
    }

    fn hung_up(&self, index: usize) -> After {
        // Not when it was the server that ended.
        if !self.over.load(Ordering::SeqCst) {
            let now = Instant::now();
            self.shared
                .note(index, |request| request.ending = Ending::HungUp(now));
        }
        After::Close
    }
}

/// Whether the other side has closed the connection; waits for the read time-out.
fn is_ended(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => {
            thread::sleep(Duration::from_millis(2));
            false
        }
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    }
}

/// Waits for the head of a request and leaves it unread, with its length.
fn peek_request(stream: &TcpStream, connection: usize) -> Option<(Request, usize)> {
    let mut seen = vec![0; 1 << 16];
    loop {
        let length = stream.peek(&mut seen).ok().filter(|length| *length > 0)?;
        let head = seen[..length]
            .windows(4)
            .position(|window| window == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&seen[..head]).into_owned();
            let request = Request::parse(&text, connection);
            let body = request
                .header("content-length")
                .map_or(0, |length| length.parse().unwrap());
            return Some((request, head + 4 + body));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl Request {
    fn parse(head: &str, connection: usize) -> Self {
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let method = first.next().unwrap_or_default().to_owned();
        let target = first.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            connection,
            at: Instant::now(),
            ending: Ending::Waiting,
            flooded: 0,
        }
    }
}
