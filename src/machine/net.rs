//! Who listens where, as the tables of a network namespace under `/proc` tell it.
//!
//! Formats as proc(5) and proc_pid_net(5) describe them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// The most bytes of a table that are looked at.
const LONGEST_TABLE: u64 = 32 << 20;

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

    /// What takes connections to the TCP port `port` of one of `addresses`.
    pub fn tcp_listeners(&self, port: u16, addresses: &[IpAddr]) -> Vec<Listener> {
        let open: Vec<_> = ["tcp", "tcp6"]
            .iter()
            .flat_map(|table| self.rows(table))
            .filter_map(|row| tcp_listener(&row, port))
            .collect();
        let mut found: Vec<Listener> = Vec::new();
        for address in addresses {
            // As the system chooses: the address itself before any address.
            let near = |local: IpAddr| nearness(local, *address);
            let Some(nearest) = open.iter().filter_map(|(local, _)| near(*local)).min() else {
                continue;
            };
            let of_nearest = open
                .iter()
                .filter(|(local, _)| near(*local) == Some(nearest));
            for (_, listener) in of_nearest {
                if !found.contains(listener) {
                    found.push(*listener);
                }
            }
        }
        found
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

    /// What listens on the Unix socket at `path`.
    pub fn unix_listeners(&self, path: &str) -> Vec<Listener> {
        let rows = self.rows("unix");
        rows.filter_map(|row| unix_listener(&row, path)).collect()
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

/// What a row of `tcp` or `tcp6` shows to listen on `port`, and at which address.
fn tcp_listener(row: &str, port: u16) -> Option<(IpAddr, Listener)> {
    let mut fields = row.split_ascii_whitespace();
    let (local, state) = (fields.nth(1)?, fields.nth(1)?);
    let (address, local_port) = local.rsplit_once(':')?;
    if state != "0A" || u16::from_str_radix(local_port, 16) != Ok(port) {
        return None;
    }
    let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
    let listener = Listener {
        inode: inode.parse().ok()?,
        uid: uid.parse().ok(),
    };
    Some((hexadecimal(address)?, listener))
}

/// An address as these tables have it: words of 32 bits, each in the machine's own order.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
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

/// What a row of `unix` shows to listen at `path`.
fn unix_listener(row: &str, path: &str) -> Option<Listener> {
    /// `__SO_ACCEPTCON`: it waits for connections.
    const ACCEPTS: u32 = 0x10000;
    let mut fields = row.splitn(8, ' ').filter(|field| !field.is_empty());
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    (flags & ACCEPTS != 0).then_some(())?;
    // The inode is right-aligned, and the path may hold spaces.
    let rest = row.strip_suffix(path)?;
    let inode = rest.strip_suffix(' ')?.rsplit(' ').next()?;
    Some(Listener {
        inode: inode.parse().ok()?,
        uid: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

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
        let found = Net::at(tree.path(""), true).tcp_listeners(8080, &addresses);
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
            let found = net.unix_listeners(path).into_iter();
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
