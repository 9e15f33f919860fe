"""Download files over HTTP; what can go wrong there, in a few words."""

import http.client

import requests

TIMEOUT_S = (10, 60)  # to connect, and between two pieces


def describe_request_error(error: requests.RequestException) -> str:
    """Why, in a few words: requests' own sentences hold objects' addresses and whole tracebacks."""
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code  # in our words: the server's may hold anything
        return f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    for kind, words in REQUEST_ERRORS.items():
        if isinstance(error, kind):
            return words
    return str(error) if type(error) is requests.RequestException else type(error).__name__  # others may hold secrets


REQUEST_ERRORS = {  # the first that fits
    requests.Timeout: "the server does not answer",
    requests.exceptions.ChunkedEncodingError: "the connection broke off",
    requests.exceptions.ContentDecodingError: "what the server sends cannot be unpacked",
    requests.TooManyRedirects: "the server sends from one address to the next without end",
    requests.exceptions.SSLError: "the server's certificate is not accepted",
    requests.exceptions.ProxyError: "the proxy cannot be reached",
    requests.ConnectionError: "the server cannot be reached",
    requests.exceptions.InvalidSchema: "the server sends on to something that is no address of the web",
    requests.exceptions.InvalidURL: "the server sends on to something that is no address",
}
