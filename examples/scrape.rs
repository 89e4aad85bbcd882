//! Times scrapes of an exporter against scrapes of a bare tiny_http server that answers the same
//! bytes, and times its status page: `scrape 127.0.0.1:9100`. For `scripts/bench`.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use tiny_http::{Header, Response, Server};

const WARM_UP: usize = 200;
const SCRAPES: usize = 2000;
const PAGES: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        Some(exporter) => compare(exporter),
        None => Err("usage: scrape ADDRESS".into()),
    }
}

fn compare(exporter: &str) -> Result<(), Box<dyn Error>> {
    let body = get(exporter, "/metrics")?;
    let (mut child, bare) = bare_server(&body)?;
    let times = by_turns(exporter, &bare);
    child.kill()?;
    child.wait()?;
    let pages = (0..PAGES).map(|_| timed(exporter, "/"));
    let mut pages = pages.collect::<io::Result<Vec<_>>>()?;
    println!("page_bytes {}", get(exporter, "/")?.len());
    println!("page {}", median_us(&mut pages));
    let (mut exporter, mut bare) = times?;
    println!("bytes {}", body.len());
    println!("exporter {}", median_us(&mut exporter));
    println!("bare {}", median_us(&mut bare));
    Ok(())
}

/// One of each in turn, so that what else the machine does meets both alike.
fn by_turns(exporter: &str, bare: &str) -> io::Result<(Vec<Duration>, Vec<Duration>)> {
    let mut times = (Vec::new(), Vec::new());
    for turn in 0..WARM_UP + SCRAPES {
        let of_exporter = timed(exporter, "/metrics")?;
        let of_bare = timed(bare, "/metrics")?;
        if turn >= WARM_UP {
            times.0.push(of_exporter);
            times.1.push(of_bare);
        }
        // No scraper is this quick, and a server may have something to tidy up after an answer.
        thread::sleep(Duration::from_micros(500));
    }
    Ok(times)
}

fn timed(address: &str, path: &str) -> io::Result<Duration> {
    let start = Instant::now();
    get(address, path)?;
    Ok(start.elapsed())
}

/// The body of one answer, over a connection of its own.
fn get(address: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let host = format!("Host: {address}\r\n");
    let request = [
        "GET ",
        path,
        " HTTP/1.1\r\n",
        &host,
        "Connection: close\r\n\r\n",
    ]
    .concat();
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::with_capacity(64 * 1024);
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
        _ => Err(io::Error::other(format!("{address} does not answer 200"))),
    }
}

fn median_us(times: &mut [Duration]) -> u128 {
    times.sort();
    times[times.len() / 2].as_micros()
}

/// The bare server, in a process of its own as the exporter is, and its address.
fn bare_server(body: &[u8]) -> io::Result<(Child, String)> {
    let mut child = Command::new(env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes to the bare server"));
    };
    stdin.write_all(body)?;
    drop(stdin);
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    Ok((child, address.trim().to_owned()))
}

/// Answers every request with what stands on stdin.
fn serve() -> Result<(), Box<dyn Error>> {
    let mut body = Vec::new();
    io::stdin().read_to_end(&mut body)?;
    let server = Server::http("127.0.0.1:0").map_err(|error| error.to_string())?;
    println!("{}", server.server_addr());
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    for request in server.incoming_requests() {
        let header = Header::from_bytes("Content-Type", kind).map_err(|()| "no header")?;
        let answer = Response::from_data(body.clone()).with_header(header);
        request.respond(answer.with_chunked_threshold(usize::MAX))?;
    }
    Ok(())
}
