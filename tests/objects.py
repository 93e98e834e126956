"""A store of objects that is not there: gs:// and s3:// in this process, and over HTTP for TensorStore.

As in the real ones, objects are written whole; there is no append, and folders are beginnings of names.
`Objects` is what fsspec (so epath) sees, `serve` what TensorStore's drivers of Google's storage and S3 ask.
"""

import contextlib
import http.server
import io
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class Objects(AbstractFileSystem):
    """Objects by "bucket/name", for the whole process."""

    protocol = ("gs", "gcs", "s3")
    cachable = False
    held: ClassVar[dict[str, bytes]] = {}
    refused: ClassVar[set[str]] = set()  # beginnings of names that S3 gives and takes nothing of

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return re.sub(r"^\w+://", "", str(path)).strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for name, content in list(self.held.items()):
            if name == path:
                found[name] = {"name": name, "size": len(content), "type": "file"}
            elif name.startswith(f"{path}/"):
                child, deeper, _ = name[len(path) + 1 :].partition("/")
                one = f"{path}/{child}"
                kind = "directory" if deeper else "file"
                found[one] = {"name": one, "size": 0 if deeper else len(content), "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.held:
            return {"name": path, "size": len(self.held[path]), "type": "file"}
        self.ls(path)
        return {"name": path, "size": 0, "type": "directory"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._strip_protocol(path)
        if mode == "rb":
            if path not in self.held:
                raise FileNotFoundError(path)
            return io.BytesIO(self.held[path])
        if mode != "wb":
            raise NotImplementedError(f"a store of objects has no mode {mode}")
        return _Upload(path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source not in self.held:
            raise FileNotFoundError(source)  # a folder is no object
        self.held[target] = self.held[source]

    def rm_file(self, path: str) -> None:
        self._rm(path)

    def _rm(self, path: str) -> None:
        self.held.pop(self._strip_protocol(path), None)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def rmdir(self, path: str) -> None:
        pass


class _Upload(io.BytesIO):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def close(self) -> None:
        if not self.closed:
            Objects.held[self._name] = self.getvalue()
        super().close()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            self.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """The part of the JSON interface that is asked for: objects are read, written, listed, deleted."""

    protocol_version = "HTTP/1.1"

    def _asked(self) -> tuple[str, str | None, dict[str, str]]:
        """Bucket, object and query."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        found = re.search(r"/b/([^/]+)/o(?:/(.+))?$", url.path)
        assert found, self.path
        name = found[2] and urllib.parse.unquote(found[2])
        return found[1], name, query

    def _say(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def _tell(self, value: Any) -> None:
        self._say(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def do_GET(self) -> None:
        bucket, name, query = self._asked()
        if name is None:
            begins = f"{bucket}/{query.get('prefix', '')}"
            names = sorted(n for n in list(Objects.held) if n.startswith(begins))
            self._tell({"items": [_described(n) for n in names]})
            return
        content = Objects.held.get(f"{bucket}/{name}")
        if content is None:
            self._say(404)
            return
        generation = _described(f"{bucket}/{name}")["generation"]
        if query.get("ifGenerationNotMatch") == generation:
            self._say(304)
            return
        self._give(content, **{"x-goog-generation": generation})

    def _give(self, content: bytes, **headers: str) -> None:
        """An object, or the bytes of it that are asked for."""
        status, part = 200, content
        headers["Date"] = self.date_time_string()
        if ask := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(ask[1]), min(int(ask[2] or len(content)), len(content) - 1)
            status, part = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._say(status, part, **headers)

    def do_POST(self) -> None:
        bucket, _, query = self._asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = f"{bucket}/{query['name']}"
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and wanted != _described(name)["generation"]:
            self._say(412)
            return
        Objects.held[name] = content
        self._tell(_described(name))

    def do_DELETE(self) -> None:
        bucket, name, _ = self._asked()
        found = Objects.held.pop(f"{bucket}/{name}", None)
        self._say(404 if found is None else 204)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _S3Handler(_Handler):
    """The part of S3's interface that TensorStore asks for: /bucket/name is read and written."""

    def parse_request(self) -> bool:
        known = super().parse_request()
        if known and self._named().startswith(tuple(Objects.refused)):
            self.send_error(403)
            return False
        return known

    def _named(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path.strip("/"))

    def _tag(self, name: str) -> str:
        return f'"{_described(name)["generation"]}"' if name in Objects.held else ""

    def do_HEAD(self) -> None:
        self._say(200, **{"x-amz-bucket-region": "nowhere-1"})

    def do_GET(self) -> None:
        name = self._named()
        if name not in Objects.held:
            self._say(404)
        elif self.headers.get("If-None-Match") == self._tag(name):
            self._say(304)
        else:
            self._give(Objects.held[name], ETag=self._tag(name))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self._named()
        if self.headers.get("If-None-Match") == "*" and name in Objects.held:
            self._say(412)
            return
        Objects.held[name] = content
        self._say(200, ETag=self._tag(name))


def _described(name: str) -> dict[str, str]:
    content = Objects.held.get(name)
    generation = "0" if content is None else str(1 + hash(content) % 10**15)
    size = str(len(content or b""))
    return {"name": name.partition("/")[2], "generation": generation, "size": size}


@contextlib.contextmanager
def serve(scheme: str = "gs") -> Iterator[str]:
    """The address of a server of `Objects`; fsspec has them as gs:// and s3:// from now on.

    scheme: gs or s3, the language that the server speaks.
    """
    for name in Objects.protocol:
        fsspec.register_implementation(name, Objects, clobber=True)
    Objects.held.clear()
    Objects.refused.clear()
    handler = {"gs": _Handler, "s3": _S3Handler}[scheme]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
