"""The commonest words of languages: what a text is known by, and what of a query is not looked for."""

DEFAULT_LANGUAGE = "english"

COMMON = {
    "english": "the of and to in is that was for it with as are this be on not by from you have a an at or were been "
    "has had do does did can could would should will who whom whose what when where which why how",
    "german": "der die das und ist nicht ein eine den dem mit von zu auf für sich des im auch wird sind war "
    "wer wen wem was wann wo wie warum welche welcher welches",
    "french": "le la les des et est une dans que qui pour pas sur du au avec ce il sont plus par un de "
    "quand où comment pourquoi quel quelle",
    "spanish": "el la los las y es una que en del por con para se no su al como lo más está un de "
    "quién cuándo dónde cómo qué cuál",
    "italian": "il la che di è un una per non sono con del della le si in gli al da anche chi quando dove come perché",
    "portuguese": "o os as é um uma que de do da em para não com se no na por mais",
    "dutch": "de het een en van is dat niet in op te zijn voor met aan er die ook wordt naar bij",
    "swedish": "och att det är som en på inte av för med den till ett har om de var jag kan",
    "danish": "og at det er som en på ikke af for med den til et har om de var jeg kan fra",
    "norwegian": "og å det er som en på ikke av for med den til et har om de var jeg kan fra",
    "finnish": "ja on ei se että oli hän mutta ovat joka kun myös niin tai kuin sen ole jos",
    "hungarian": "az és hogy nem is egy van volt meg ez csak de már vagy mint ha el azt",
    "romanian": "și de la în cu nu pe este un care din să mai pentru sau ce sunt că",
    "turkish": "ve bir bu da de için ile olarak çok daha olan gibi ne var mi ama kadar en",
    "catalan": "el la els les és una que en del per amb no se al com més seva són dels",
    "indonesian": "yang dan di itu dengan untuk tidak ini dari dalam akan pada ke adalah ada juga",
}
"""Of each language in Latin letters that Snowball has a stemmer for, and what questions begin with."""

LANGUAGES = tuple(COMMON)
"""Those that a text may be taken for."""
