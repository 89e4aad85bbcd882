//! An HTTP server that follows a script: for each path an answer. It records its requests, and the
//! script can be changed while it runs.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::answer::{Answer, Delivery, GIGABYTE};

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
    pub outcome: Outcome,
    /// How much of the gigabyte the system had taken.
    pub flooded: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It still waits for its answer.
    Waiting,
    /// It was answered (or refused) as the script has it.
    Answered(Instant),
    /// The client disconnected before it had the answer.
    Disconnected(Instant),
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
        self.outcome == Outcome::Waiting
    }

    pub fn was_disconnected(&self) -> bool {
        matches!(self.outcome, Outcome::Disconnected(_))
    }
}

#[derive(Default)]
struct Shared {
    /// The answer of each path, and the version of the script that it is from.
    script: Mutex<HashMap<String, (Answer, usize)>>,
    /// The answer of every path that the script has not.
    elsewhere: Mutex<Option<Answer>>,
    /// The answer of every path, in place of the script.
    everywhere: Mutex<Option<Answer>>,
    version: AtomicUsize,
    record: Mutex<Vec<Request>>,
    connections: AtomicUsize,
}

/// One time that the server listens; `stop` ends it.
struct Listening {
    over: Arc<AtomicBool>,
    open: Open,
    accepting: thread::JoinHandle<()>,
}

/// The connections that are open, by number.
type Open = Arc<Mutex<HashMap<usize, Arc<TcpStream>>>>;

pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Mutex<Option<Listening>>,
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
        let listening = Mutex::new(Some(listen(listener, shared.clone())));
        Server {
            address,
            shared,
            listening,
        }
    }

    /// Refuses connections from now on, and ends those it has.
    pub fn stop(&self) {
        let Some(listening) = self.listening.lock().unwrap().take() else {
            return;
        };
        listening.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        listening.accepting.join().unwrap();
        for (_, stream) in listening.open.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // A child process that is being started has the listener until its exec.
        super::wait_until("the port is closed", || {
            TcpStream::connect(self.address).is_err()
        });
    }

    /// Listens again where it listened before.
    pub fn restart(&self) {
        let mut listening = self.listening.lock().unwrap();
        assert!(listening.is_none(), "it was not stopped");
        let listener = super::wait_for("the port is free again", || {
            TcpListener::bind(self.address).ok()
        });
        *listening = Some(listen(listener, self.shared.clone()));
    }

    /// An address on which nothing listens.
    pub fn stopped() -> Self {
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

    /// From now on, and for requests that wait, `path` answers so. A path may have a query: then
    /// only that.
    pub fn answer(&self, path: &str, answer: Answer) -> &Self {
        self.answer_all([(path, answer)])
    }

    /// The same for several paths: no request gets an answer from between.
    pub fn answer_all<'a>(&self, answers: impl IntoIterator<Item = (&'a str, Answer)>) -> &Self {
        let mut script = self.shared.script.lock().unwrap();
        for (path, answer) in answers {
            let version = self.shared.version.fetch_add(1, Ordering::SeqCst) + 1;
            script.insert(path.to_owned(), (answer, version));
        }
        drop(script);
        self
    }

    pub fn answer_json(&self, path: &str, document: impl ToString) -> &Self {
        self.answer(path, Answer::json(document.to_string()))
    }

    /// From now on every path that has no answer of its own answers so.
    pub fn answer_other_paths(&self, answer: Answer) -> &Self {
        *self.shared.elsewhere.lock().unwrap() = Some(answer);
        self
    }

    /// From now on every path answers so, as a proxy before a dead server does.
    pub fn answer_everything(&self, answer: Answer) -> &Self {
        *self.shared.everywhere.lock().unwrap() = Some(answer);
        self
    }

    /// From now on every path answers by the script again.
    pub fn answer_by_script(&self) -> &Self {
        *self.shared.everywhere.lock().unwrap() = None;
        self
    }

    pub fn answer_404(&self, path: &str) -> &Self {
        self.answer(path, Answer::error(404, "File Not Found"))
    }

    /// What `path` answers at present.
    pub fn answer_of(&self, path: &str) -> Answer {
        self.shared.answer(path).0
    }

    /// Answers these paths as another server does. Paths in the order in which they are polled:
    /// the last is changed first, so that no poll sees a new answer before an old one.
    pub fn answer_like(&self, other: &Server, paths: &[&str]) {
        for path in paths.iter().rev() {
            self.answer(path, other.answer_of(path));
        }
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.listening
            .lock()
            .unwrap()
            .as_ref()
            .map_or(0, |listening| listening.open.lock().unwrap().len())
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
        if let Some(answer) = self.everywhere.lock().unwrap().clone() {
            return (answer, 0);
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

fn listen(listener: TcpListener, shared: Arc<Shared>) -> Listening {
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
    Listening {
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

/// Why the wait before an answer ended.
#[derive(PartialEq)]
enum HoldEnd {
    LongEnough,
    ScriptChanged,
    Disconnected,
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
                    request.outcome = Outcome::Answered(now);
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
        let (mut answer, mut version) = self.shared.answer(path);
        match answer.delivery {
            Delivery::Reset => return Ok(After::Reset),
            _ => stream.read_exact(&mut vec![0; length])?,
        }
        while let Delivery::Never | Delivery::Lost = answer.delivery {
            if self.hold(path, version, None) == HoldEnd::Disconnected {
                return Ok(self.disconnected(index));
            }
            let lost = matches!(answer.delivery, Delivery::Lost);
            let (next, now) = self.shared.answer(path);
            version = now;
            if !lost {
                answer = next;
            }
        }
        if answer.delay > Duration::ZERO
            && self.hold(path, version, Some(answer.delay)) == HoldEnd::Disconnected
        {
            return Ok(self.disconnected(index));
        }
        match answer.delivery {
            Delivery::Dripping(pause) => {
                stream.write_all(&answer.head())?;
                let mut body = &answer.body[..];
                while let [first, rest @ ..] = body {
                    stream.write_all(&[*first])?;
                    body = rest;
                    match self.hold(path, version, Some(pause)) {
                        HoldEnd::LongEnough => {}
                        HoldEnd::Disconnected => return Ok(self.disconnected(index)),
                        HoldEnd::ScriptChanged => {
                            stream.write_all(body)?;
                            break;
                        }
                    }
                }
            }
            Delivery::CutAfter(bytes) => {
                stream.write_all(&answer.head())?;
                stream.write_all(&answer.body[..bytes.min(answer.body.len())])?;
                return Ok(After::Close);
            }
            Delivery::Flood => return self.flood(&answer, index),
            Delivery::Growing => {
                stream.write_all(&answer.head())?;
                let mut sent = 0;
                while let Delivery::Growing = answer.delivery {
                    stream.write_all(&answer.body[sent..])?;
                    sent = answer.body.len();
                    if self.hold(path, version, None) == HoldEnd::Disconnected {
                        return Ok(self.disconnected(index));
                    }
                    let last = answer;
                    (answer, version) = self.shared.answer(path);
                    if !answer.body.starts_with(&last.body) {
                        break;
                    }
                }
                return Ok(After::Close);
            }
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
                return Ok(self.disconnected(index));
            }
        }
        Ok(After::Close)
    }

    /// Waits for the script of `path` to change, for the client to disconnect, or for `limit`.
    fn hold(&self, path: &str, version: usize, limit: Option<Duration>) -> HoldEnd {
        let end = limit.map(|limit| Instant::now() + limit);
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(2)));
        let held = loop {
            if self.over.load(Ordering::SeqCst) || is_ended(&self.stream) {
                break HoldEnd::Disconnected;
            }
            if self.shared.answer(path).1 != version {
                break HoldEnd::ScriptChanged;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                break HoldEnd::LongEnough;
            }
        };
        let _ = self.stream.set_read_timeout(None);
        held
    }

    fn disconnected(&self, index: usize) -> After {
        // Not when it was the server that ended.
        if !self.over.load(Ordering::SeqCst) {
            let now = Instant::now();
            self.shared.note(index, |request| {
                request.outcome = Outcome::Disconnected(now)
            });
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
            outcome: Outcome::Waiting,
            flooded: 0,
        }
    }
}
