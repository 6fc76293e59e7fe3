//! The same image everywhere.
