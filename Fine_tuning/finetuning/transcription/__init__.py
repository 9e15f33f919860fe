"""Recordings of any length -> segments -> transcripts and subtitles."""
