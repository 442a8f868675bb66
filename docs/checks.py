"Which cells only check what the page says, so that readers need not pass through them"
import ast
import re


def parsed(source):
    try: return ast.parse(source).body
    except SyntaxError: return [] # `!command`


def is_check(node):
    "assert, test_eq(...), torch.testing.assert_close(...)"
    if isinstance(node, ast.Assert): return True
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and bool(re.match('(test|assert)_', ast.unparse(call.func).rpartition('.')[2]))


SCOPES = ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


def made(nodes):
    "Names that later cells see"
    found = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): found.add(node.id)
        elif not isinstance(node, SCOPES): found |= made(ast.iter_child_nodes(node))
    return found


def needed(nodes):
    "Names that are read before these statements make them"
    found, own = set(), set()
    for node in nodes:
        read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        found, own = found | read - own, own | made([node])
    return found


def only_checks(cells, pure):
    """Of code cells, the indices of those that only check: they show nothing, and make nothing that a cell which stays
    needs. `pure`: and hold nothing but checks, for pages whose readers follow every step."""
    later, found = set(), set()
    for n, cell in reversed([*enumerate(cells)]):
        nodes = parsed(cell.source)
        checks = [node for node in nodes if any(map(is_check, ast.walk(node)))]
        shows = cell.get('outputs') or made(nodes) & later or pure and len(checks) < len(nodes)
        if checks and not shows: found.add(n)
        else: later = later - made(nodes) | needed(nodes)
    return found
