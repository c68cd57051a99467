//! The control-plane protocol: generated gRPC code and its conversions to and from the model
