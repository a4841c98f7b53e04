"""The endpoints by resource: parameters in, one engine call, the envelope out."""
