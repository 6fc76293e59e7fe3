//! Who may speak to the Runtime API of a box on a network that it shares with this machine.
//!
//! Loopback is everybody's: other users, and the functions in other boxes. But the kernel knows which
//! socket is at the other end of a connection, and who has that socket open.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::process::Pid;

use super::processes;

/// Tells the processes of a box from others that connect to the same listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorkeeper {
    /// Only the box can reach the listener, or nobody can tell.
    Anybody,
    /// Connections must come from a descendant of this process.
    Descendants(u32),
}

/// The list of processes is read while it changes. Who is missed each time is not there.
const LOOKS: usize = 3;

impl Doorkeeper {
    /// Whether the peer of an accepted connection is of the box. It reads `/proc`, for less than a
    /// millisecond.
    pub fn admits(self, peer: SocketAddr, local: SocketAddr) -> io::Result<bool> {
        let Self::Descendants(ancestor) = self else {
            return Ok(true);
        };
        let Some(ancestor) = i32::try_from(ancestor).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        let Some(inode) = socket_of(peer, local)? else {
            return Ok(false);
        };
        Ok((0..LOOKS).any(|_| {
            processes::descendants(ancestor)
                .into_iter()
                .any(|process| processes::has_socket(process, inode))
        }))
    }
}

/// The inode number of the socket at the other end of a connection on this machine, if it has one.
fn socket_of(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u64>> {
    let (peer, local) = (canonical(peer), canonical(local));
    let inode = match diagnose(peer, local) {
        // A kernel may be without sock_diag(7), whose answer is the faster one by a factor of a
        // thousand on a machine with much memory.
        Err(_) => look_up(peer, local)?,
        Ok(inode) => inode,
    };
    // A socket that its process has closed has none.
    Ok(inode.filter(|inode| *inode != 0))
}

/// IPv4 inside IPv6 is IPv4: it is what the listener sees, whatever socket the client has.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// A `nlmsghdr`.
const HEADER: usize = 16;
/// A `nlmsghdr` and an `inet_diag_req_v2`.
const REQUEST: u32 = 16 + 56;
/// Where an `inet_diag_msg` has its two ports.
const PORTS: usize = 4;
/// Where an `inet_diag_msg` has its `idiag_inode`.
const INODE: usize = 68;

/// Asks for the one socket by its two addresses.
fn diagnose(peer: SocketAddr, local: SocketAddr) -> rustix::io::Result<Option<u64>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    rustix::net::send(&socket, &question(peer, local), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    understand(&answer[..length], peer.port(), local.port())
}

fn question(peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let family = match peer {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let mut message = Vec::new();
    message.extend(REQUEST.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // The sequence number, and the sender that the kernel fills in.
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.push(u8::try_from(family.as_raw()).unwrap_or(0));
    message.extend([IPPROTO_TCP, 0, 0]);
    // Any state.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(sixteen(peer.ip()));
    message.extend(sixteen(local.ip()));
    // Any interface, any cookie.
    message.extend(0_u32.to_ne_bytes());
    message.extend(u64::MAX.to_ne_bytes());
    message
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn understand(answer: &[u8], peer: u16, local: u16) -> rustix::io::Result<Option<u64>> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    match kind.map(u16::from_ne_bytes) {
        Some(SOCK_DIAG_BY_FAMILY) => {
            let inode = u32::from_ne_bytes(four(answer, HEADER + INODE)?);
            let [a, b] = peer.to_be_bytes();
            let [c, d] = local.to_be_bytes();
            // If there is no such connection the kernel tells of who listens at the peer's port.
            let connected = four(answer, HEADER + PORTS)? == [a, b, c, d];
            Ok(connected.then_some(inode.into()))
        }
        Some(NLMSG_ERROR) => {
            let error = i32::from_ne_bytes(four(answer, HEADER)?);
            match Errno::from_raw_os_error(error.saturating_neg()) {
                Errno::NOENT => Ok(None),
                errno => Err(errno),
            }
        }
        _ => Err(Errno::PROTO),
    }
}

fn four(answer: &[u8], at: usize) -> rustix::io::Result<[u8; 4]> {
    let bytes = answer.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().ok_or(Errno::PROTO)
}

/// Looks the socket up in the table of all: `proc_net_tcp` in `proc_pid_net(5)`.
fn look_up(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u64>> {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if peer.is_ipv4() {
        let found = find(&fs::read_to_string("/proc/net/tcp")?, peer, local);
        if found.is_some() {
            return Ok(found);
        }
    }
    match fs::read_to_string("/proc/net/tcp6") {
        Ok(table) => Ok(find(&table, mapped(peer), mapped(local))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The inode number in the line of the socket at `peer` that is connected to `local`.
fn find(table: &str, peer: SocketAddr, local: SocketAddr) -> Option<u64> {
    let (peer, local) = (written(peer), written(local));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let connected = fields.next()? == peer && fields.next()? == local;
        connected.then(|| fields.nth(6)?.parse().ok()).flatten()
    })
}

/// An address as the table has it: words of 32 bits in the machine's order, in hexadecimal.
fn written(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn inode(stream: &TcpStream) -> u64 {
        let fd = std::os::fd::AsRawFd::as_raw_fd(stream);
        fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino()
    }

    #[test]
    fn both_ways_find_the_socket_of_a_peer() {
        for listening in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listening).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            let expected = Some(inode(&client));
            assert_eq!(diagnose(peer, local).unwrap(), expected, "{listening}");
            assert_eq!(look_up(peer, local).unwrap(), expected, "{listening}");
            let nobody = SocketAddr::new(peer.ip(), local.port());
            assert_eq!(diagnose(nobody, local).unwrap(), None, "{listening}");
            assert_eq!(look_up(nobody, local).unwrap(), None, "{listening}");
        }
    }

    #[test]
    fn a_client_with_a_socket_of_the_other_family_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(format!("[::ffff:127.0.0.1]:{port}")).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let local = accepted.local_addr().unwrap();
        let expected = Some(inode(&client));
        assert_eq!(diagnose(peer, local).unwrap(), expected);
        assert_eq!(look_up(peer, local).unwrap(), expected);
    }

    #[test]
    fn who_does_not_descend_is_not_admitted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let local = accepted.local_addr().unwrap();
        let own = std::process::id();
        // This process is no descendant of itself.
        assert!(!Doorkeeper::Descendants(own).admits(peer, local).unwrap());
        assert!(!Doorkeeper::Descendants(0).admits(peer, local).unwrap());
        assert!(Doorkeeper::Anybody.admits(peer, local).unwrap());
        let parent = std::os::unix::process::parent_id();
        assert!(Doorkeeper::Descendants(parent).admits(peer, local).unwrap());
    }

    #[test]
    fn answers_of_the_kernel_are_read_as_far_as_they_go() {
        let understand = |answer: &[u8]| understand(answer, 0x0102, 0x0304);
        let mut answer = vec![0; HEADER + INODE + 4];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER + INODE..].copy_from_slice(&77_u32.to_ne_bytes());
        assert_eq!(understand(&answer), Ok(None), "of a listener");
        answer[HEADER + PORTS..][..4].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(understand(&answer), Ok(Some(77)));
        assert_eq!(understand(&answer[..HEADER + INODE]), Err(Errno::PROTO));
        let mut error = vec![0; HEADER + 4];
        error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        error[HEADER..].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(understand(&error), Ok(None));
        error[HEADER..].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(understand(&error), Err(Errno::PERM));
        assert_eq!(understand(&[]), Err(Errno::PROTO));
    }
}
