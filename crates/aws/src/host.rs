//! Which registries are ECR's, told by their host names alone.

use std::fmt;

/// What follows the region in the host names of the plain form, one for each partition.
const PLAIN_DOMAINS: [&str; 7] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];

/// What follows it in those of the dual-stack form.
const DUAL_STACK_DOMAINS: [&str; 2] = ["on.aws", "on.amazonwebservices.com.cn"];

/// ECR Public, by its IPv4 name and by its dual-stack one.
const PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];

/// The host of a private ECR registry, taken apart.
///
/// ```
/// use tierce_aws::EcrHost;
///
/// let host = EcrHost::parse("123456789012.dkr.ecr.eu-west-1.amazonaws.com").ok_or("not ECR")?;
/// assert_eq!((host.account(), host.region()), ("123456789012", "eu-west-1"));
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EcrHost {
    account: String,
    region: String,
    domain: &'static str,
    fips: bool,
    dual_stack: bool,
}

impl EcrHost {
    /// Reads a host name; `None` when it is not that of a private ECR registry.
    ///
    /// All of it must fit, letter by letter: a name that only looks alike would be given a token for
    /// every registry that its user may reach. A port is no part of such a name.
    pub fn parse(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let forms = [
            ("dkr.ecr.", false, false),
            ("dkr.ecr-fips.", true, false),
            ("dkr-ecr.", false, true),
            ("dkr-ecr-fips.", true, true),
        ];
        let (rest, fips, dual_stack) = forms
            .into_iter()
            .find_map(|(form, fips, dual)| Some((rest.strip_prefix(form)?, fips, dual)))?;
        let (region, domain) = rest.split_once('.')?;
        let domains: &[&'static str] = if dual_stack {
            &DUAL_STACK_DOMAINS
        } else {
            &PLAIN_DOMAINS
        };
        let domain = domains.iter().find(|known| **known == domain)?;
        (is_account && is_region(region)).then(|| Self {
            account: account.to_owned(),
            region: region.to_owned(),
            domain,
            fips,
            dual_stack,
        })
    }

    /// The twelve digits of the account, which ECR calls the registry's id.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether it is one of the hosts that keep to FIPS 140.
    pub fn is_fips(&self) -> bool {
        self.fips
    }

    /// Whether it is one of the hosts with IPv4 and IPv6 addresses.
    pub fn is_dual_stack(&self) -> bool {
        self.dual_stack
    }
}

impl fmt::Display for EcrHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            region,
            domain,
            ..
        } = self;
        let separator = if self.dual_stack { '-' } else { '.' };
        let fips = if self.fips { "-fips" } else { "" };
        write!(
            formatter,
            "{account}.dkr{separator}ecr{fips}.{region}.{domain}"
        )
    }
}

/// Region names are words of lower-case letters and digits with hyphens between them.
fn is_region(text: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.len() <= 63 && text.contains('-') && text.split('-').all(word)
}

/// Whether that is ECR Public.
pub fn is_public_ecr(host: &str) -> bool {
    PUBLIC_HOSTS.contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_known() {
        for (host, region, fips, dual_stack) in [
            ("dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", false, false),
            (
                "dkr.ecr.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                false,
                false,
            ),
            (
                "dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                false,
                false,
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                false,
                false,
            ),
            (
                "dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                false,
                false,
            ),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                false,
                false,
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                false,
                false,
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                false,
                false,
            ),
            (
                "dkr.ecr-fips.us-east-1.amazonaws.com",
                "us-east-1",
                true,
                false,
            ),
            ("dkr-ecr.us-east-1.on.aws", "us-east-1", false, true),
            ("dkr-ecr-fips.us-east-1.on.aws", "us-east-1", true, true),
            (
                "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
                "cn-northwest-1",
                false,
                true,
            ),
        ] {
            let name = format!("123456789012.{host}");
            let parsed = EcrHost::parse(&name).unwrap_or_else(|| panic!("{name} is ECR's"));
            assert_eq!(parsed.account(), "123456789012");
            assert_eq!(parsed.region(), region);
            assert_eq!(
                (parsed.is_fips(), parsed.is_dual_stack()),
                (fips, dual_stack)
            );
            assert_eq!(parsed.to_string(), name);
        }
    }

    #[test]
    fn what_only_looks_alike_is_not_taken() {
        for host in [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.org",
            "123456789012.dkr.ecr.eu-west-1.evil.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.comx",
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "1234567890123.dkr.ecr.eu-west-1.amazonaws.com",
            "12345678901a.dkr.ecr.eu-west-1.amazonaws.com",
            "١٢٣٤٥٦.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.DKR.ECR.EU-WEST-1.AMAZONAWS.COM",
            "123456789012.dkr.ecr.EU-WEST-1.amazonaws.com",
            "x.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            " 123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.-.amazonaws.com",
            "123456789012.dkr.ecr.eu_west-1.amazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "123456789012.dkr-ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.on.aws",
            "123456789012.dkr.ecrfips.eu-west-1.amazonaws.com",
            "api.ecr.eu-west-1.amazonaws.com",
            "public.ecr.aws",
            "localhost:5000",
            "",
        ] {
            assert_eq!(EcrHost::parse(host), None, "{host}");
        }
        assert!(is_public_ecr("public.ecr.aws"));
        assert!(is_public_ecr("ecr-public.aws.com"));
        for host in ["public.ecr.aws:443", "x.public.ecr.aws", "PUBLIC.ECR.AWS"] {
            assert!(!is_public_ecr(host), "{host}");
        }
    }
}
