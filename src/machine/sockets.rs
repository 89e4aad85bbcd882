//! Reads the socket tables of a network namespace from `/proc`.
//!
//! Formats are those of proc(5) and proc_pid_net(5).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The most bytes of a table that are read.
const MAX_TABLE_BYTES: u64 = 32 << 20;
/// The most listening TCP sockets, and Unix sockets, that are kept.
const MAX_LISTENING: usize = 16_384;
/// The most local addresses of a namespace that are listed, repeated ones included.
const MAX_ADDRESSES: usize = 256;
const TCP_TABLES: [&str; 2] = ["tcp", "tcp6"];

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Its inode number, as in the links of `/proc/PID/fd`.
    pub inode: u64,
    /// The user who owns it; unknown for Unix sockets.
    pub uid: Option<u32>,
}

/// A network namespace: `/proc/net`, or `/proc/PID/net`.
#[derive(Clone, Debug)]
pub struct NetworkNamespace {
    folder: PathBuf,
    /// Whether it is that of this process. Only then do loopback addresses refer to it.
    is_own: bool,
}

impl NetworkNamespace {
    /// The namespace whose tables are in `folder`.
    pub fn new(folder: PathBuf, is_own: bool) -> NetworkNamespace {
        NetworkNamespace { folder, is_own }
    }

    /// The rows of a table, read one by one: it may have tens of thousands.
    fn rows(&self, table: &str) -> impl Iterator<Item = String> {
        let file = File::open(self.folder.join(table)).ok();
        file.into_iter()
            .flat_map(|file| BufReader::new(file.take(MAX_TABLE_BYTES)).split(b'\n'))
            .map_while(Result::ok)
            .map(|row| String::from_utf8_lossy(&row).into_owned())
    }

    /// Whether `address` is a local address of the namespace.
    pub fn has_address(&self, address: IpAddr) -> bool {
        match address {
            address if address.is_loopback() => self.is_own,
            IpAddr::V4(address) => {
                fib_trie_addresses(self.rows("fib_trie")).any(|local| local == address)
            }
            IpAddr::V6(address) => {
                let wanted = format!("{:032x}", u128::from(address));
                self.rows("if_inet6").any(|row| row.starts_with(&wanted))
            }
        }
    }

    /// The local addresses of the namespace that other namespaces may reach.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = fib_trie_addresses(self.rows("fib_trie")).map(IpAddr::V4);
        let v6 = self.rows("if_inet6").filter_map(|row| {
            let address = Ipv6Addr::from(u128::from_str_radix(row.get(..32)?, 16).ok()?);
            (!address.is_unicast_link_local()).then_some(IpAddr::V6(address))
        });
        let mut all: Vec<IpAddr> = v4.chain(v6).take(MAX_ADDRESSES).collect();
        all.retain(|address| !address.is_loopback());
        // The table has each address several times.
        all.sort_unstable();
        all.dedup();
        all
    }

    /// All listening sockets in the namespace.
    pub fn listening(&self) -> ListeningSockets {
        let tcp = TCP_TABLES.into_iter().flat_map(|table| self.rows(table));
        let tcp = tcp.filter_map(|row| {
            let row = TcpRow::parse(&row).filter(|row| row.state == TCP_LISTEN)?;
            let socket = ListeningSocket {
                inode: row.inode,
                uid: row.uid,
            };
            Some((row.local, socket))
        });
        let unix = self.rows("unix").filter_map(|row| listening_unix(&row));
        ListeningSockets {
            tcp: tcp.take(MAX_LISTENING).collect(),
            unix: unix.take(MAX_LISTENING).collect(),
        }
    }

    /// Whether the namespace has the TCP connection between these two addresses.
    pub fn has_connection(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let is = |a: SocketAddr, b: SocketAddr| {
            (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
        };
        let mut rows = TCP_TABLES.into_iter().flat_map(|table| self.rows(table));
        rows.any(|row| {
            TcpRow::parse(&row).is_some_and(|row| is(row.local, local) && is(row.remote, remote))
        })
    }

    /// Whether the socket with this inode number is in the namespace.
    pub fn has_socket(&self, inode: u64) -> bool {
        let inode = inode.to_string();
        [("tcp", 9), ("tcp6", 9), ("unix", 6)]
            .iter()
            .any(|(table, column)| {
                let mut rows = self.rows(table);
                rows.any(|row| row.split_ascii_whitespace().nth(*column) == Some(&inode))
            })
    }
}

/// The listening sockets of a network namespace.
pub struct ListeningSockets {
    tcp: Vec<(SocketAddr, ListeningSocket)>,
    unix: Vec<(String, ListeningSocket)>,
}

impl ListeningSockets {
    /// The sockets that accept connections to `port` of one of `addresses`.
    pub fn tcp(&self, port: u16, addresses: &[IpAddr]) -> Vec<ListeningSocket> {
        let mut found: Vec<ListeningSocket> = Vec::new();
        for address in addresses {
            let at_port = self.tcp.iter().filter(|(local, _)| local.port() == port);
            let matching: Vec<(u8, ListeningSocket)> = at_port
                .filter_map(|(local, socket)| Some((match_rank(local.ip(), *address)?, *socket)))
                .collect();
            // Like the kernel, prefer the address itself to a wildcard.
            let best = matching.iter().map(|(rank, _)| *rank).min();
            for (rank, socket) in matching {
                if Some(rank) == best && !found.contains(&socket) {
                    found.push(socket);
                }
            }
        }
        found
    }

    /// The sockets that listen at the Unix socket `path`.
    pub fn unix(&self, path: &str) -> Vec<ListeningSocket> {
        let at_path = self.unix.iter().filter(|(bound, _)| bound == path);
        at_path.map(|(_, socket)| *socket).collect()
    }

    /// The TCP addresses with their sockets.
    pub fn tcp_addresses(&self) -> &[(SocketAddr, ListeningSocket)] {
        &self.tcp
    }

    /// The paths of Unix sockets, as bound, with their sockets.
    pub fn unix_paths(&self) -> &[(String, ListeningSocket)] {
        &self.unix
    }

    /// The inode numbers of all of them.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        let tcp = self.tcp.iter().map(|(_, socket)| socket.inode);
        tcp.chain(self.unix.iter().map(|(_, socket)| socket.inode))
    }
}

/// How well a socket bound to `local` matches `address`; lower is better, `None` is not at all.
pub fn match_rank(local: IpAddr, address: IpAddr) -> Option<u8> {
    match local.to_canonical() {
        local if local == address => Some(0),
        local if local.is_unspecified() && local.is_ipv4() == address.is_ipv4() => Some(1),
        // Most sockets that listen on every IPv6 address also listen on every IPv4 address.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(2),
        _ => None,
    }
}

/// The state of a listening socket.
const TCP_LISTEN: &str = "0A";

/// A row of `tcp` or `tcp6`.
struct TcpRow<'a> {
    local: SocketAddr,
    remote: SocketAddr,
    state: &'a str,
    uid: Option<u32>,
    inode: u64,
}

impl TcpRow<'_> {
    fn parse(row: &str) -> Option<TcpRow<'_>> {
        let mut fields = row.split_ascii_whitespace();
        let (local, remote, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
        Some(TcpRow {
            local: socket_address(local)?,
            remote: socket_address(remote)?,
            state,
            uid: uid.parse().ok(),
            inode: inode.parse().ok()?,
        })
    }
}

/// Parses `ADDRESS:PORT`, both hexadecimal; an address is 1 or 4 words of 32 bits, each in the
/// machine's byte order.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let word = |digits: &[u8]| {
        let word = u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let words: Option<Vec<[u8; 4]>> = address.as_bytes().chunks(8).map(word).collect();
    let bytes = words?.concat();
    let ip = match address.len() {
        8 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        32 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The local addresses in `fib_trie`: leaves that are followed by this kind.
fn fib_trie_addresses(rows: impl Iterator<Item = String>) -> impl Iterator<Item = Ipv4Addr> {
    let mut leaf = None;
    rows.filter_map(move |row| {
        let row = row.trim();
        if let Some(address) = row.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if row.starts_with("+--") {
            leaf = None;
        }
        leaf.filter(|_| row == "/32 host LOCAL")
    })
}

/// The path and socket of a row of `unix`, if it listens.
fn listening_unix(row: &str) -> Option<(String, ListeningSocket)> {
    /// `__SO_ACCEPTCON`.
    const ACCEPTS_CONNECTIONS: u32 = 0x10000;
    // Seven fields, the inode right-aligned, and a path that may contain spaces.
    let (mut path, mut fields) = (row, [""; 7]);
    for field in &mut fields {
        (*field, path) = path.trim_start_matches(' ').split_once(' ')?;
    }
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let socket = ListeningSocket {
        inode: fields[6].parse().ok()?,
        uid: None,
    };
    (flags & ACCEPTS_CONNECTIONS != 0).then(|| (path.to_owned(), socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::file_tree::FileTree;

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
        let tree = FileTree::new(&[
            ("tcp", &(head.to_owned() + &tcp.concat())),
            ("tcp6", &(head.to_owned() + &tcp6.concat())),
        ]);
        let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect();
        let found = NetworkNamespace::new(tree.path(""), true)
            .listening()
            .tcp(8080, &addresses);
        found.iter().map(|socket| socket.inode).collect()
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
    fn listening_sockets_are_found_by_address_and_port_and_connections_are_not() {
        let open = |local, inode| line(local, "0A", 1000, inode);
        let connection = line(LOCALHOST, "01", 1000, 9);
        let found = |tcp: &[String], tcp6: &[String]| inodes(tcp, tcp6, &["127.0.0.1"]);
        assert_eq!(found(&[open(LOCALHOST, 1), connection], &[]), [1]);
        // A socket with another address belongs to another server.
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
        let tree = FileTree::new(&[("unix", text), ("tcp", &line("0100007F", "0A", 0, 77001))]);
        let net = NetworkNamespace::new(tree.path(""), true);
        let inodes = |path| -> Vec<u64> {
            let found = net.listening().unix(path).into_iter();
            found.map(|socket| socket.inode).collect()
        };
        assert_eq!(inodes("/tmp/a b/llama.sock"), [30001]);
        assert!(inodes("b/llama.sock").is_empty());
        assert!(net.has_socket(30001) && net.has_socket(77001));
        assert!(!net.has_socket(3000) && !net.has_socket(1));
    }

    #[test]
    fn local_addresses_are_recognized() {
        let tree = FileTree::new(&[
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
        let own = NetworkNamespace::new(tree.path(""), true);
        for here in ["172.18.0.3", "fd00::2", "127.0.0.1", "::1"] {
            assert!(own.has_address(address(here)), "{here}");
        }
        for elsewhere in ["172.18.0.30", "172.18.255.255", "10.0.0.9", "fd00::3"] {
            assert!(!own.has_address(address(elsewhere)), "{elsewhere}");
        }
        let found = own.addresses();
        assert_eq!(found, [address("172.18.0.3"), address("fd00::2")]);
        // Loopback addresses of another namespace cannot be reached from this one.
        let other = NetworkNamespace::new(tree.path(""), false);
        assert!(
            other.has_address(address("172.18.0.3")) && !other.has_address(address("127.0.0.1"))
        );
    }
}
