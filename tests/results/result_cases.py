"""Records of scores, and a reader of HTML pages, that tests of results share."""

from html.parser import HTMLParser

import numpy as np


def record(name, protocol, metric, values, labels=None, target="cifar100", student="ssdd_convnet3", **more):
    known = [value for value in values if value is not None]
    facts = {"set": name, "protocol": protocol, "source": "cifar100", "target": target, "student": student}
    numbers = {"mean": np.mean(known).item() if known else None, "n": len(known), "values": list(values)}
    std = np.std(known, ddof=1).item() if len(known) > 1 else 0.0
    return facts | {"use": "none", "labels": labels, "metric": metric, "std": std} | numbers | more


class Page(HTMLParser):
    """Checks that every element is closed in order; collects text by kind of element, links and rows of tables."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.tags, self.links, self.rows = [], {}, set(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.rows.append([])
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())
            if {"td", "th"} & set(self.open):
                self.rows[-1].append(data.strip())

    def check_whole(self):
        """Checks that nothing of the page is fetched or run."""
        assert self.tags.isdisjoint({"script", "link", "iframe"})
        assert all(link.startswith("data:image/png;base64,") for link in self.links)
        assert not [word for word in ("url(", "@import") if word in self.texts["style"][0]]
