//! Moments as AWS tells them.

use aws_smithy_types::DateTime;
use tierce_oci::Timestamp;

/// The moment in whole seconds; `None` for one before 1970, which no token or image has.
pub(crate) fn timestamp(moment: DateTime) -> Option<Timestamp> {
    moment.secs().to_string().parse().ok()
}
