//! The check of an archive that becomes a layer as it is.
//!
//! Nobody puts such an archive in order afterwards, so whatever unpackers would understand each in
//! their own way is refused. What is kept meanwhile is the paths and not more.

use std::io::Read;

use crate::member::{Limits, Member, MemberKind, Strictness, TarError, Walker};
use crate::path::{BadPath, EntryPath};
use crate::seal::EntryCounts;
use crate::seen::{Obstacle, Seen, Standing};
use crate::whiteout::Marker;

/// Reads `archive` to its last byte and counts what it holds.
pub(crate) fn check_members(archive: impl Read, limits: Limits) -> Result<EntryCounts, TarError> {
    let mut counts = EntryCounts::default();
    let mut seen = Seen::new();
    let mut walker = Walker::new(archive, Strictness::Strict, limits);
    while let Some(member) = walker.next_member()? {
        let Some(path) = member.clean_path()? else {
            match member.kind {
                MemberKind::Directory => continue,
                _ => return Err(member.misnamed(BadPath::Empty)),
            }
        };
        let above = seen.enter(&path, |standing| standing != Standing::Directory);
        walker.keep(above.map_err(|obstacle| behind(&member, obstacle))?)?;
        let standing = standing(&member, &path, &seen)?;
        let taken = match standing {
            Standing::Directory => seen.get(&path).is_some(),
            _ => seen.is_taken(&path),
        };
        if taken {
            let member = member.readable_name();
            return Err(TarError::Duplicate { member });
        }
        *match &member.kind {
            MemberKind::Directory => &mut counts.directories,
            MemberKind::Symlink(_) => &mut counts.symlinks,
            MemberKind::Hardlink(_) => &mut counts.hardlinks,
            _ if Marker::of(&path).is_some() => &mut counts.whiteouts,
            _ => &mut counts.files,
        } += 1;
        seen.insert(path, standing);
    }
    walker.finish()?;
    Ok(counts)
}

/// What the member makes of its path; an error when layers have no such members.
fn standing(
    member: &Member,
    path: &EntryPath,
    seen: &Seen<Standing>,
) -> Result<Standing, TarError> {
    match Marker::of(path) {
        Some(Marker::Nothing) => {
            let member = member.readable_name();
            return Err(TarError::EmptyWhiteout { member });
        }
        Some(Marker::Driver) => {
            return Err(member.refused("file of the aufs driver, which other readers skip"));
        }
        Some(Marker::Whiteout(_) | Marker::Opaque(_)) if member.kind != MemberKind::File => {
            return Err(member.refused("deletion that is no regular file"));
        }
        None | Some(Marker::Whiteout(_) | Marker::Opaque(_)) => {}
    }
    match &member.kind {
        MemberKind::Directory => Ok(Standing::Directory),
        MemberKind::File => Ok(Standing::Other),
        MemberKind::Symlink(_) => Ok(Standing::Symlink),
        MemberKind::Hardlink(target) => {
            let target = member.clean_target(target)?;
            // A marker is no file, and the name of a symlink's hardlink is a symlink.
            match seen.get(&target) {
                Some(&standing)
                    if standing != Standing::Directory && Marker::of(&target).is_none() =>
                {
                    Ok(standing)
                }
                _ => Err(TarError::NoTarget {
                    member: member.readable_name(),
                    target: target.to_string(),
                }),
            }
        }
        refused => Err(member.refused(refused.noun())),
    }
}

fn behind(member: &Member, obstacle: Obstacle) -> TarError {
    let member = member.readable_name();
    match obstacle.standing {
        Standing::Symlink => TarError::BehindSymlink {
            member,
            link: obstacle.path,
        },
        _ => TarError::BehindFile {
            member,
            file: obstacle.path,
        },
    }
}
