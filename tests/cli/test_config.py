"""Settings: who wins, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgqueue.config import OTHER_VARIABLES, SETTINGS, describe_setting, load, shown
from pgqueue.errors import ConfigError
from tests.cli.commands import invoke


def write(text: str, name: str = "pgqueue.yaml") -> None:
    Path(name).write_text(text)


def refusal(flags: dict[str, object] | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ=environ)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() -> None:
    write("grace: 1\nlease: 11\nprocesses: 2\nschema: ours\n")
    loaded = load(
        {"grace": "3", "name": None}, environ={"PGQUEUE_GRACE": "2", "PGQUEUE_LEASE": "22", "PGQUEUE_PROCESSES": "3"}
    )

    config = loaded.config
    assert (config.grace, config.lease, config.processes, config.schema, config.log_level) == (3, 22, 3, "ours", "info")
    origins = [loaded.origin(name) for name in ("grace", "lease", "schema", "log_level", "name")]
    assert origins == ["--grace", "PGQUEUE_LEASE", "pgqueue.yaml: schema", "default", "default"]


def test_database_url_is_environment_too_but_pgqueue_dsn_is_meant_for_us() -> None:
    write("dsn: postgresql:///file\n")
    url = {"DATABASE_URL": "postgresql:///url"}
    assert load(environ={}).config.dsn == "postgresql:///file"
    assert load(environ=url).config.dsn == "postgresql:///url"
    assert load(environ=url | {"PGQUEUE_DSN": "postgresql:///ours"}).config.dsn == "postgresql:///ours"
    assert load({"dsn": "postgresql:///flag"}, environ=url).config.dsn == "postgresql:///flag"


def test_another_kind_of_database_in_database_url_does_not_matter_if_it_is_not_asked() -> None:
    environ = {"DATABASE_URL": "mysql://there", "PGQUEUE_DSN": "postgresql:///ours"}
    assert load(environ=environ).config.dsn == "postgresql:///ours"


def test_a_secret_is_read_from_a_file() -> None:
    write("postgresql://me:geheim@there/app\n", "secret")
    loaded = load(environ={"PGQUEUE_DSN_FILE": "secret"})
    assert loaded.config.dsn == "postgresql://me:geheim@there/app"
    assert loaded.origin("dsn") == "PGQUEUE_DSN_FILE"
    assert refusal(PGQUEUE_DSN_FILE="secret", PGQUEUE_DSN="x") == (
        "PGQUEUE_DSN_FILE and PGQUEUE_DSN are both set: unset one of them"
    )
    assert refusal(PGQUEUE_DSN_FILE="nowhere") == "PGQUEUE_DSN_FILE: can't read 'nowhere': No such file or directory"
    write(" \n", "empty")
    assert "is empty" in refusal(PGQUEUE_DSN_FILE="empty")


def test_an_unknown_name_is_an_error_with_the_nearest_known_one() -> None:
    assert "PGQUEUE_QUEUE is no setting of pgqueue; did you mean 'PGQUEUE_QUEUES'?" in refusal(PGQUEUE_QUEUE="mail")
    write("log-level: debug\n")
    assert refusal() == "pgqueue.yaml: 'log-level' is no setting of pgqueue; did you mean 'log_level'?"


def test_variables_of_others_that_begin_alike_are_no_settings_of_ours() -> None:
    service = {
        "PGQUEUE_SERVICE_HOST": "10.0.0.1",
        "PGQUEUE_PORT": "tcp://10.0.0.1:80",
        "PGQUEUE_SERVICE_PORT_HTTP": "80",
    }
    links = {"PGQUEUE_PORT_80_TCP_ADDR": "10.0.0.1", "PGQUEUE_WEB_SERVICE_HOST": "10.0.0.2"}
    assert not load(environ=service | links | dict.fromkeys(OTHER_VARIABLES - {"PGQUEUE_CONFIG"}, "x")).origins


def test_an_empty_variable_says_nothing() -> None:
    assert not load(environ={"PGQUEUE_LEASE": "", "PGQUEUE_DSN": "", "DATABASE_URL": ""}).origins


@pytest.mark.parametrize("text", ["{mail: 20, import: 10}", "[mail=20, import]", "mail=20,import"])
def test_queues_may_be_written_as_a_mapping_a_list_or_a_text(text: str) -> None:
    write(f"queues: {text}\n")
    assert load(environ={}).config.queues == {"mail": 20, "import": 10}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lease: 1", "pgqueue.yaml: lease 1: must be a number from 6 to 86400"),
        ("grace: [2]", "pgqueue.yaml: grace [2]: must be a number from 0 to 86400"),
        ("processes: 1.5", "pgqueue.yaml: processes 1.5: must be a whole number from 1 to 256"),
        ("pooled: perhaps", "pgqueue.yaml: pooled 'perhaps': must be true or false"),
        ("log_level: loud", "pgqueue.yaml: log_level 'loud': must be one of debug, info, warning, error"),
        ("name: ''", "pgqueue.yaml: name '': must be a text"),
        ("schema: a-b", "pgqueue.yaml: schema: schema 'a-b': use a letter"),
        ("queues: {mail: 0}", "pgqueue.yaml: queues: queue 'mail': 0 jobs at once"),
        ("queues: 5", "pgqueue.yaml: queues 5: must be queues with how many"),
        ("dsn: mysql://a:geheim@b", "pgqueue.yaml: dsn: the DSN 'mysql://a:***@b': not PostgreSQL"),
        ("dsn: {password: geheim}", "pgqueue.yaml: dsn: must be a text"),
        ("- lease", "pgqueue.yaml: should be a list of settings such as"),
        ("lease: [", "pgqueue.yaml, line 2: not valid YAML: expected the node content"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_key_unless_it_is_a_secret(text: str, said: str) -> None:
    write(f"{text}\n")
    assert refusal().startswith(said)
    assert "geheim" not in refusal()


def test_what_loses_is_checked_all_the_same() -> None:
    write("lease: never\n")
    assert "lease 'never'" in refusal({"lease": "20"})


def test_another_file_is_named_by_flag_or_variable_and_has_to_exist() -> None:
    write("grace: 1", "one.yaml")
    write("grace: 2", "two.yaml")
    assert load(environ={"PGQUEUE_CONFIG": "one.yaml"}).config.grace == 1
    assert load(file="two.yaml", environ={"PGQUEUE_CONFIG": "one.yaml"}).config.grace == 2
    assert refusal(PGQUEUE_CONFIG="none.yaml") == "PGQUEUE_CONFIG: can't read 'none.yaml': No such file or directory"


def test_an_empty_file_and_an_empty_key_say_nothing() -> None:
    write("")
    assert not load(environ={}).origins
    write("app:\n")
    assert not load(environ={}).origins


def test_no_password_is_shown() -> None:
    assert shown("dsn", "postgresql://me:geheim@there/app") == "postgresql://me:***@there/app"
    assert "geheim" not in repr(load({"dsn": "postgresql://me:geheim@there/app"}, environ={}).config)


def test_config_show_says_where_each_value_stands() -> None:
    write("dsn: postgresql://me:geheim@there/app\nqueues: {mail: 2}\n")
    result = invoke("config", "show", "--grace", "5", PGQUEUE_LEASE="30")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["dsn"] == ["postgresql://me:***@there/app", "pgqueue.yaml:", "dsn"]
    assert rows["queues"] == ["mail=2", "pgqueue.yaml:", "queues"]
    assert rows["lease"] == ["30", "PGQUEUE_LEASE"]
    assert rows["grace"] == ["5", "--grace"]
    assert rows["processes"] == ["1", "default"]


def test_config_keys_explains_every_setting() -> None:
    said = invoke("config", "keys").stdout
    for name in SETTINGS:
        assert name in said
        assert describe_setting(name) in said
        assert f"PGQUEUE_{name.upper()}" in said
