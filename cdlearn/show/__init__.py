"""What a person looks at: HTML of traces, the token inspector, the handout page, and figures."""
