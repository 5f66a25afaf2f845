from services.runtime.feature_cache import FeatureCache


def test_least_recently_used_goes_first() -> None:
    cache: FeatureCache[int] = FeatureCache(2)
    cache.keep("a", 1)
    cache.keep("b", 2)
    assert cache.find("a") == 1
    cache.keep("c", 3)
    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (1, None, 3)
    assert len(cache) == 2


def test_keeping_again_replaces() -> None:
    cache: FeatureCache[int] = FeatureCache(2)
    cache.keep("a", 1)
    cache.keep("a", 2)
    assert (cache.find("a"), len(cache)) == (2, 1)
    cache.clear()
    assert cache.find("a") is None


def test_no_entries_keep_nothing() -> None:
    cache: FeatureCache[int] = FeatureCache(0)
    cache.keep("a", 1)
    assert cache.find("a") is None
