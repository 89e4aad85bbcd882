//! Who listens where, as the tables of a network namespace under `/proc` tell it.
//!
//! Formats as proc(5) and proc_pid_net(5) describe them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The most bytes of a table that are looked at.
const LONGEST_TABLE: u64 = 32 << 20;
/// The most listeners of a kind that are kept.
const MOST_LISTENERS: usize = 16_384;

/// Something that a process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The socket's number, which `/proc/PID/fd` has too.
    pub inode: u64,
    /// The user that it belongs to; not told of Unix sockets.
    pub uid: Option<u32>,
}

/// A network namespace: `/proc/net`, or `/proc/PID/net`.
#[derive(Clone, Debug)]
pub struct Net {
    folder: PathBuf,
    /// Whether it is our own: only there a loopback address leads.
    own: bool,
}

impl Net {
    /// The namespace whose tables are in `folder`; `own`: it is that of this process.
    pub fn at(folder: PathBuf, own: bool) -> Net {
        Net { folder, own }
    }

    /// The rows of a table, one after the other: a busy machine has tens of thousands of
    /// connections, and routes.
    fn rows(&self, table: &str) -> impl Iterator<Item = String> {
        let file = File::open(self.folder.join(table)).ok();
        file.into_iter()
            .flat_map(|file| BufReader::new(file.take(LONGEST_TABLE)).split(b'\n'))
            .map_while(Result::ok)
            .map(|row| String::from_utf8_lossy(&row).into_owned())
    }

    /// Whether `address` is one of its own.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            address if address.is_loopback() => self.own,
            IpAddr::V4(address) => has_v4(self.rows("fib_trie"), address),
            IpAddr::V6(address) => {
                let wanted = format!("{:032x}", u128::from(address));
                self.rows("if_inet6").any(|row| row.starts_with(&wanted))
            }
        }
    }

    /// What listens in it.
    pub fn listening(&self) -> Listening {
        let tcp = ["tcp", "tcp6"]
            .into_iter()
            .flat_map(|table| self.rows(table));
        let unix = self.rows("unix");
        Listening {
            tcp: tcp
                .filter_map(|row| tcp_listener(&row))
                .take(MOST_LISTENERS)
                .collect(),
            unix: unix
                .filter_map(|row| unix_listener(&row))
                .take(MOST_LISTENERS)
                .collect(),
        }
    }

    /// Whether it has this TCP connection, as its end `local` sees it.
    pub fn has_connection(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let same = |end: (IpAddr, u16), of: SocketAddr| {
            (end.0.to_canonical(), end.1) == (of.ip().to_canonical(), of.port())
        };
        let mut rows = ["tcp", "tcp6"]
            .into_iter()
            .flat_map(|table| self.rows(table));
        rows.any(|row| {
            let is_it = |row: TcpRow| same(row.local, local) && same(row.remote, remote);
            TcpRow::parse(&row).is_some_and(is_it)
        })
    }

    /// Whether the socket with this number is one of its own.
    pub fn has_socket(&self, inode: u64) -> bool {
        let inode = inode.to_string();
        let tables = [("tcp", 9), ("tcp6", 9), ("unix", 6)];
        tables.iter().any(|(table, field)| {
            let is_its = |row: String| row.split_ascii_whitespace().nth(*field) == Some(&inode);
            self.rows(table).any(is_its)
        })
    }
}

/// What listens in a network.
pub struct Listening {
    tcp: Vec<(IpAddr, u16, Listener)>,
    unix: Vec<(String, Listener)>,
}

impl Listening {
    /// What takes connections to the TCP port `port` of one of `addresses`.
    pub fn tcp(&self, port: u16, addresses: &[IpAddr]) -> Vec<Listener> {
        let open = || self.tcp.iter().filter(|(_, of, _)| *of == port);
        let mut found: Vec<Listener> = Vec::new();
        for address in addresses {
            // As the system chooses: the address itself before any address.
            let near = |local: IpAddr| nearness(local, *address);
            let Some(nearest) = open().filter_map(|(local, ..)| near(*local)).min() else {
                continue;
            };
            let of_nearest = open().filter(|(local, ..)| near(*local) == Some(nearest));
            for (_, _, listener) in of_nearest {
                if !found.contains(listener) {
                    found.push(*listener);
                }
            }
        }
        found
    }

    /// What listens on the Unix socket at `path`.
    pub fn unix(&self, path: &str) -> Vec<Listener> {
        let at_path = self.unix.iter().filter(|(of, _)| of == path);
        at_path.map(|(_, listener)| *listener).collect()
    }

    /// The numbers of all that listen.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        let tcp = self.tcp.iter().map(|(_, _, listener)| listener.inode);
        tcp.chain(self.unix.iter().map(|(_, listener)| listener.inode))
    }
}

/// How closely a socket that is bound to `local` fits `address`; lower is closer.
fn nearness(local: IpAddr, address: IpAddr) -> Option<u8> {
    match (local.to_canonical(), address) {
        (local, address) if local == address => Some(0),
        (local, address) if local.is_unspecified() && local.is_ipv4() == address.is_ipv4() => {
            Some(1)
        }
        // Most that listen on every IPv6 address listen on every IPv4 address too.
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(_)) => Some(2),
        _ => None,
    }
}

/// The state in which a socket waits for connections (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// A row of `tcp` or `tcp6`.
struct TcpRow<'a> {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: &'a str,
    uid: Option<u32>,
    inode: u64,
}

impl TcpRow<'_> {
    fn parse(row: &str) -> Option<TcpRow<'_>> {
        let mut fields = row.split_ascii_whitespace();
        let (local, remote, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let end = |text: &str| {
            let (address, port) = text.rsplit_once(':')?;
            Some((hexadecimal(address)?, u16::from_str_radix(port, 16).ok()?))
        };
        let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
        Some(TcpRow {
            local: end(local)?,
            remote: end(remote)?,
            state,
            uid: uid.parse().ok(),
            inode: inode.parse().ok()?,
        })
    }
}

/// What a row of `tcp` or `tcp6` shows to listen, and at which address and port.
fn tcp_listener(row: &str) -> Option<(IpAddr, u16, Listener)> {
    let row = TcpRow::parse(row).filter(|row| row.state == LISTEN)?;
    let listener = Listener {
        inode: row.inode,
        uid: row.uid,
    };
    Some((row.local.0, row.local.1, listener))
}

/// An address as these tables have it: words of 32 bits, each in the machine's own order.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |digits: &[u8]| {
        let word = u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let words: Vec<[u8; 4]> = text.as_bytes().chunks(8).map(word).collect::<Option<_>>()?;
    match (text.len(), &words[..]) {
        (8, [word]) => Some(Ipv4Addr::from(*word).into()),
        (32, words) => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Whether `fib_trie` has the address as a local one: a leaf, and in the next rows what it is.
fn has_v4(mut rows: impl Iterator<Item = String>, address: Ipv4Addr) -> bool {
    let mut here = false;
    rows.any(|row| {
        let row = row.trim();
        if let Some(leaf) = row.strip_prefix("|-- ") {
            here = leaf.parse() == Ok(address);
        } else if row.starts_with("+--") {
            here = false;
        }
        here && row == "/32 host LOCAL"
    })
}

/// What a row of `unix` shows to listen, and its path.
fn unix_listener(row: &str) -> Option<(String, Listener)> {
    /// `__SO_ACCEPTCON`: it waits for connections.
    const ACCEPTS: u32 = 0x10000;
    // Seven fields, of which the inode is right-aligned, and a path that may hold spaces.
    let (mut rest, mut fields) = (row, [""; 7]);
    for field in &mut fields {
        (*field, rest) = rest.trim_start_matches(' ').split_once(' ')?;
    }
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let listener = Listener {
        inode: fields[6].parse().ok()?,
        uid: None,
    };
    (flags & ACCEPTS != 0).then(|| (rest.to_owned(), listener))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::test_files::Tree;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A line of `tcp` or `tcp6` about a socket in the state `state`.
    fn line(local: &str, state: &str, uid: u32, inode: u32) -> String {
        let zeros = "0".repeat(local.len());
        format!(
            "   0: {local}:1F90 {zeros}:0000 {state} 00000000:00000000 00:00000000 00000000  {uid}        0 {inode} 1 0 100 0 0 10 0\n"
        )
    }

    fn inodes(tcp: &[String], tcp6: &[String], addresses: &[&str]) -> Vec<u64> {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let tree = Tree::new(&[
            ("tcp", &(head.to_owned() + &tcp.concat())),
            ("tcp6", &(head.to_owned() + &tcp6.concat())),
        ]);
        let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect();
        let found = Net::at(tree.path(""), true)
            .listening()
            .tcp(8080, &addresses);
        found.iter().map(|listener| listener.inode).collect()
    }

    // As a little-endian machine writes them.
    const LOCALHOST: &str = "0100007F";
    const OTHER: &str = "0201A8C0";
    const ANY: &str = "00000000";
    const LOCALHOST_6: &str = "00000000000000000000000001000000";
    const MAPPED: &str = "0000000000000000FFFF00000100007F";
    const ANY_6: &str = "00000000000000000000000000000000";

    #[test]
    #[cfg(target_endian = "little")]
    fn a_listener_is_found_by_its_address_and_port_and_a_connection_is_none() {
        let open = |local, inode| line(local, "0A", 1000, inode);
        let connection = line(LOCALHOST, "01", 1000, 9);
        let found = |tcp: &[String], tcp6: &[String]| inodes(tcp, tcp6, &["127.0.0.1"]);
        assert_eq!(found(&[open(LOCALHOST, 1), connection], &[]), [1]);
        // That of another address is another server.
        assert_eq!(found(&[open(OTHER, 2), open(LOCALHOST, 1)], &[]), [1]);
        assert!(found(&[open(OTHER, 2)], &[open(LOCALHOST_6, 3)]).is_empty());
        assert_eq!(found(&[], &[open(MAPPED, 4)]), [4]);
        assert_eq!(found(&[], &[open(ANY_6, 5)]), [5]);
        assert_eq!(found(&[open(ANY, 6)], &[open(ANY_6, 5)]), [6]);
        let both = ["127.0.0.1", "::1"];
        let tables = ([open(LOCALHOST, 1)], [open(LOCALHOST_6, 3)]);
        assert_eq!(inodes(&tables.0, &tables.1, &both), [1, 3]);
        assert_eq!(inodes(&[], &[open(ANY_6, 5)], &both), [5]);
        // Two may share a port (SO_REUSEPORT).
        assert_eq!(
            found(&[open(LOCALHOST, 1), open(LOCALHOST, 7)], &[]),
            [1, 7]
        );
        let garbage = "garbage\n0: x 0A\n".to_owned();
        assert!(found(&[garbage], &["\n".to_owned()]).is_empty());
    }

    #[test]
    fn a_unix_socket_is_found_by_its_path() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 30001 /tmp/a b/llama.sock\n\
             0000000000000000: 00000003 00000000 00000000 0001 03    77 /tmp/a b/llama.sock\n";
        let tree = Tree::new(&[("unix", text), ("tcp", &line("0100007F", "0A", 0, 77001))]);
        let net = Net::at(tree.path(""), true);
        let inodes = |path| -> Vec<u64> {
            let found = net.listening().unix(path).into_iter();
            found.map(|listener| listener.inode).collect()
        };
        assert_eq!(inodes("/tmp/a b/llama.sock"), [30001]);
        assert!(inodes("b/llama.sock").is_empty());
        assert!(net.has_socket(30001) && net.has_socket(77001));
        assert!(!net.has_socket(3000) && !net.has_socket(1));
    }

    #[test]
    fn an_address_is_told_to_be_its_own() {
        let tree = Tree::new(&[
            (
                "fib_trie",
                "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                 +-- 172.18.0.0/16 2 0 2\n        +-- 172.18.0.0/30 2 0 2\n           |-- 172.18.0.0\n              \
                 /16 link UNICAST\n           |-- 172.18.0.3\n              /32 host LOCAL\n        \
                 |-- 172.18.255.255\n           /32 link BROADCAST\n     |-- 10.0.0.9\n        /32 universe UNICAST\n",
            ),
            (
                "if_inet6",
                "fd000000000000000000000000000002 04 40 00 82     eth0\n",
            ),
        ]);
        let own = Net::at(tree.path(""), true);
        for here in ["172.18.0.3", "fd00::2", "127.0.0.1", "::1"] {
            assert!(own.has(address(here)), "{here}");
        }
        for elsewhere in ["172.18.0.30", "172.18.255.255", "10.0.0.9", "fd00::3"] {
            assert!(!own.has(address(elsewhere)), "{elsewhere}");
        }
        // What is loopback there does not lead there from here.
        let other = Net::at(tree.path(""), false);
        assert!(other.has(address("172.18.0.3")) && !other.has(address("127.0.0.1")));
    }
}
