//! The second stage: the first process of the box. It makes the file system, restrains itself, and
//! keeps the box.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;

use super::{loopback, mounts, restraint};
use crate::sandbox::inside::{Kind, Refused, Score, Step as _, refuse, serve};
use crate::sandbox::protocol::Room;

/// The life of the second stage.
pub(in crate::sandbox) fn keep(control: &UnixStream, room: &Room) -> io::Result<()> {
    match furnish(room) {
        Ok((listener, score)) => serve(control, &Kind::Namespaces, listener.map(Into::into), score),
        Err(refused) => refuse(control, &refused),
    }
}

fn furnish(room: &Room) -> Result<(Option<TcpListener>, Option<Score>), Refused> {
    mounts::make(room)?;
    let listener = if room.own_network {
        loopback::bring_up()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        Some(listener.step("listen in the network namespace")?)
    } else {
        None
    };
    let score = Score::own();
    restraint::apply(room)?;
    Ok((listener, score))
}
