"""What was measured at each limit of tiles, and its mean and spread over models of several seeds."""

from __future__ import annotations

from statistics import mean, stdev

from pydantic import BaseModel, computed_field
from rich.table import Table


class SetFigures(BaseModel):
    """One data set, asked of one model at one limit of tiles."""

    weights: str
    max_tiles: int
    name: str
    questions: int
    # Share of right answers.
    accuracy: float
    # Of a question on average: tokens with the images', and seconds from the image file to the whole answer.
    tokens: float
    seconds: float


class Summary(BaseModel):
    """One data set at one limit of tiles, over all models."""

    name: str
    max_tiles: int
    accuracy: float
    # Standard deviation over models; 0 of a single one.
    deviation: float
    lowest: float
    highest: float


class Cost(BaseModel):
    """A question at one limit of tiles, over all sets and models."""

    max_tiles: int
    tokens: float
    seconds: float


class ResolutionReport(BaseModel):
    """Everything that was measured."""

    figures: list[SetFigures] = []

    @property
    def limits(self) -> list[int]:
        """The limits of tiles, smallest first."""
        return sorted({each.max_tiles for each in self.figures})

    @property
    def sets(self) -> list[str]:
        """The data sets in the order of the meta file."""
        return list(dict.fromkeys(each.name for each in self.figures))

    def of(self, name: str, max_tiles: int) -> list[SetFigures]:
        """One data set at one limit of tiles: one entry a model."""
        return [each for each in self.figures if (each.name, each.max_tiles) == (name, max_tiles)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> list[Summary]:
        """Accuracy of every set at every limit."""
        return [self._summary(name, limit) for name in self.sets for limit in self.limits if self.of(name, limit)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def costs(self) -> list[Cost]:
        """What a question costs at every limit."""
        return [self._cost(limit) for limit in self.limits]

    def _summary(self, name: str, limit: int) -> Summary:
        shares = [each.accuracy for each in self.of(name, limit)]
        return Summary(
            name=name,
            max_tiles=limit,
            accuracy=mean(shares),
            deviation=stdev(shares) if len(shares) > 1 else 0.0,
            lowest=min(shares),
            highest=max(shares),
        )

    def _cost(self, limit: int) -> Cost:
        mine = [each for each in self.figures if each.max_tiles == limit]
        return Cost(
            max_tiles=limit, tokens=mean(each.tokens for each in mine), seconds=mean(each.seconds for each in mine)
        )


def resolution_table(report: ResolutionReport) -> Table:
    """Sets by limits: the mean accuracy and its deviation over models; then the cost of a question."""
    table = Table("set", *(f"{limit} tiles" for limit in report.limits))
    summaries = {(each.name, each.max_tiles): each for each in report.summary}
    for name in report.sets:
        cells = [summaries.get((name, limit)) for limit in report.limits]
        table.add_row(name, *(f"{cell.accuracy:.2f} ± {cell.deviation:.2f}" if cell else "" for cell in cells))
    table.add_section()
    table.add_row("tokens a question", *(f"{cost.tokens:.0f}" for cost in report.costs))
    table.add_row("seconds a question", *(f"{cost.seconds:.3f}" for cost in report.costs))
    return table
