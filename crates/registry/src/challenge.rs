//! What a registry asks for when it answers 401.

use http_auth::ChallengeParser;

/// A demand for authentication that can be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A user name and a password with every request.
    Basic,
    /// A token of a token server.
    Bearer(Bearer),
}

/// Where a token is to be had, and what it must allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Vec<String>,
}

/// What a request needs a token to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access<'a> {
    /// The repository's path.
    pub(crate) path: &'a str,
    /// Whether it is, or will be, written to.
    pub(crate) push: bool,
    /// Another repository of the registry from which a blob is to be mounted.
    pub(crate) mount_from: Option<&'a str>,
}

impl Challenge {
    /// Picks the first demand that can be met out of all `WWW-Authenticate` headers.
    ///
    /// There may be several, in one header or in several, and of schemes nobody here knows
    /// (`Negotiate`). A header that cannot be read to its end counts as far as it can be read.
    pub(crate) fn pick<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        headers
            .flat_map(|header| ChallengeParser::new(header).map_while(Result::ok))
            .find_map(|challenge| {
                let parameter = |name: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(known, _)| known.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    Some(Self::Basic)
                } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let scopes = parameter("scope").unwrap_or_default();
                    Some(Self::Bearer(Bearer {
                        realm: parameter("realm")?,
                        service: parameter("service"),
                        scopes: scopes.split_whitespace().map(str::to_owned).collect(),
                    }))
                } else {
                    None
                }
            })
    }
}

impl Bearer {
    /// Whether the registry names scopes the way the token specification does, so that the ones of
    /// other requests can be told without being refused first.
    ///
    /// ECR Public asks for `aws`: such scopes are echoed and nothing is made up.
    pub(crate) fn is_conventional(&self) -> bool {
        self.scopes
            .iter()
            .all(|scope| scope.starts_with("repository:"))
    }

    /// The scopes to ask for: those of the challenge and those that the request is known to need,
    /// the target's first because some token servers read no further.
    pub(crate) fn scopes_for(&self, access: &Access<'_>) -> Vec<String> {
        if !self.is_conventional() {
            return self.scopes.clone();
        }
        let mut scopes = access.scopes();
        for scope in &self.scopes {
            add(&mut scopes, scope);
        }
        scopes
    }
}

impl Access<'_> {
    fn scopes(&self) -> Vec<String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let mut scopes = vec![format!("repository:{}:{actions}", self.path)];
        scopes.extend(
            self.mount_from
                .map(|from| format!("repository:{from}:pull")),
        );
        scopes
    }
}

/// Whether a token for the scopes `held` does for `wanted`, as one to push with does for a pull.
pub(crate) fn covers(held: &[String], wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| {
        held.iter()
            .any(|held| held == wanted || allows(held, wanted))
    })
}

fn allows(held: &str, wanted: &str) -> bool {
    let (Some((held, allowed)), Some((resource, actions))) =
        (held.rsplit_once(':'), wanted.rsplit_once(':'))
    else {
        return false;
    };
    held == resource
        && actions
            .split(',')
            .all(|action| allowed.split(',').any(|allowed| allowed == action))
}

/// Adds a scope's actions to those of the same resource, or the scope as a whole.
fn add(scopes: &mut Vec<String>, scope: &str) {
    let Some((resource, actions)) = scope.rsplit_once(':') else {
        return;
    };
    let known = scopes.iter_mut().find(|known| {
        known
            .rsplit_once(':')
            .is_some_and(|(known, _)| known == resource)
    });
    let Some(known) = known else {
        scopes.push(scope.to_owned());
        return;
    };
    for action in actions.split(',') {
        let (_, present) = known.rsplit_once(':').unwrap_or_default();
        if !present.split(',').any(|present| present == action) {
            known.push(',');
            known.push_str(action);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        })
    }

    #[test]
    fn the_first_known_scheme_is_picked() {
        for (headers, expected) in [
            (&[r#"Basic realm="x""#][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#],
                Some(bearer(
                    "https://a/t",
                    Some("s"),
                    &["repository:a/b:pull,push"],
                )),
            ),
            (
                &[r#"BEARER Realm="https://a/t", Scope="x y""#],
                Some(bearer("https://a/t", None, &["x", "y"])),
            ),
            (
                &["Negotiate", r#"Bearer realm="https://a/t""#],
                Some(bearer("https://a/t", None, &[])),
            ),
            (
                &[r#"Negotiate, Digest realm="d", nonce="n", Basic realm="q,\"r""#],
                Some(Challenge::Basic),
            ),
            (
                &["Negotiate abc==", "Basic realm=x"],
                Some(Challenge::Basic),
            ),
            (&["Bearer service=x"], None),
            (&["Negotiate"], None),
            (&["\u{e9}"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(
                Challenge::pick(headers.iter().copied()),
                expected,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn scopes_are_those_of_the_challenge_and_of_the_request() {
        let access = Access {
            path: "a/b",
            push: true,
            mount_from: Some("c"),
        };
        let scopes = |challenge: &[&str]| {
            Bearer {
                realm: String::new(),
                service: None,
                scopes: challenge.iter().map(|scope| (*scope).to_owned()).collect(),
            }
            .scopes_for(&access)
        };
        let ours = ["repository:a/b:pull,push", "repository:c:pull"];
        assert_eq!(scopes(&[]), ours);
        assert_eq!(scopes(&["repository:a/b:pull"]), ours);
        assert_eq!(
            scopes(&["repository:a/b:pull,delete", "repository:d:pull"]),
            [
                "repository:a/b:pull,push,delete",
                "repository:c:pull",
                "repository:d:pull"
            ]
        );
        assert_eq!(scopes(&["aws"]), ["aws"]);
        let read = Access {
            push: false,
            mount_from: None,
            ..access
        };
        assert_eq!(read.scopes(), ["repository:a/b:pull"]);
    }

    #[test]
    fn a_token_does_for_less_than_it_was_asked_for() {
        let owned = |scopes: &[&str]| scopes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let covered = |held: &[&str], wanted: &[&str]| covers(&owned(held), &owned(wanted));
        let both = ["repository:a:pull,push", "repository:b:pull"];
        assert!(covered(&both, &["repository:a:pull"]));
        assert!(covered(&both, &["repository:b:pull", "repository:a:push"]));
        assert!(!covered(&both, &["repository:b:push"]));
        assert!(!covered(&both, &["repository:c:pull"]));
        assert!(covered(&["aws"], &["aws"]) && !covered(&both, &["aws"]));
    }
}
