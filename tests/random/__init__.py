"""Tests of explicit randomness."""
