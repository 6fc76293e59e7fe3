//! Lambda's limits on images.

/// The uncompressed size of all layers together ("10 GB", which Lambda counts in binary).
pub const UNCOMPRESSED_SIZE: u64 = 10 << 30;
/// The container image settings: ENTRYPOINT, CMD, WORKDIR and ENV.
pub const SETTINGS_SIZE: usize = 16 << 10;
/// The manifest, "for optimal performance".
pub const MANIFEST_SIZE: usize = 25_400;
/// Layers that are seen to work.
pub const MANY_LAYERS: usize = 100;
/// Layers beyond which people report that Lambda, Docker or ECR refuse.
pub const TOO_MANY_LAYERS: usize = 127;
/// The user as whom functions run, whatever USER says.
pub const USER_ID: u32 = 993;
